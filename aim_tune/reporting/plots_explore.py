"""What explore came to, for the report: the design and ranges as a table, trade-offs as table and picture.

Scores are validation accuracies of single trainings from a search: hints, no evidence. Drawn as in plots.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aim_tune.ledger import History
from aim_tune.reporting.plots import Picture, arm_look, drawn_svg
from aim_tune.reporting.words import count
from aim_tune.reporting.words_explore import said
from aim_tune.spec.study import Study
from aim_tune.stats.explored import Explored, Offer, explored_rows
from aim_tune.stats.verdict import Verdict

AXES = {"step_ms": "ms a step", "parameters": "parameters"}
"""Objective -> how an axis calls it."""


def explore_rows(found: Explored) -> list[tuple[str, str]]:
    """(what, value) of everything that the blocks go on with."""
    rows = [(key, _text(value)) for key, value in (found.design or {}).items()]
    for key, domain in found.ranges.items():
        cut = f" (asked: {said(found.narrowed[key])})" if key in found.narrowed else ""
        rows.append((key, said(domain) + cut))
    return rows


def offer_rows(found: Explored) -> list[list[str]]:
    """The Pareto sets as rows: arm, accuracy, objectives, point; cells are HTML."""
    costs = [name for name in found.objectives if name in AXES]
    return [
        [
            escape(arm), f"{100 * offer.val_accuracy:.2f} %",
            *(f"{getattr(offer, name):,.4g}" if name == "step_ms" else f"{getattr(offer, name):,}"
              for name in costs),
            escape(_point(offer)),
        ]
        for arm, offers in found.pareto.items()
        for offer in offers
    ]  # fmt: skip


def offer_head(found: Explored) -> list[str]:
    """The columns of `offer_rows`."""
    return ["arm", "validation", *(AXES[n] for n in found.objectives if n in AXES), "point"]


def trade_offs(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """7, explore with several objectives: accuracy against each cost, the Pareto set of each arm joined."""
    found = verdict.explored
    if found is None or not any(found.pareto.values()):
        return None
    costs = [name for name in found.objectives if name in AXES]

    def draw(figure: Figure) -> None:
        for i, cost in enumerate(costs):
            ax = figure.add_subplot(1, len(costs), i + 1)
            _panel(ax, study, history, found.pareto, cost)
            ax.set_xlabel(AXES[cost])
            if i == 0:
                ax.set_ylabel("validation accuracy, %")
                ax.legend(loc="lower right")

    sets = ", ".join(f"{arm} {count(len(o), 'training')}" for arm, o in found.pareto.items())
    several = "step_ms" in costs and len(found.devices) > 1
    where = f" on {next(iter(found.devices))}" if several else ""
    return Picture(
        name="trade-offs",
        title="What can be had for less?",
        sentence=f"Explore's trainings{where}, and those that no other of the same arm beats: {sets}. Each "
        "was trained once, so the best are partly luck; the design of the blocks is the most accurate one.",
        svg=drawn_svg("trade-offs", draw, height=3.0),
    )


def _panel(
    ax: Axes, study: Study, history: History, sets: Mapping[str, tuple[Offer, ...]], cost: str
) -> None:
    whole = explored_rows(history, timed=cost == "step_ms")
    for arm, offers in sets.items():
        color, marker = arm_look(study.arms, arm)
        rows = [t for t in whole if t.arm == arm and t.status == "ok" and t.result]
        seen = [(getattr(t.result, cost), t.score) for t in rows if getattr(t.result, cost)]
        ax.plot([x for x, _ in seen], [100 * (y or 0) for _, y in seen], marker, color=color,
                ms=3, alpha=0.35, mew=0, ls="")  # fmt: skip
        kept = sorted((getattr(o, cost), 100 * o.val_accuracy) for o in offers)
        ax.plot([x for x, _ in kept], [y for _, y in kept], color=color, marker=marker, ms=5,
                lw=1.2, label=arm)  # fmt: skip
    ax.grid()


def _point(offer: Offer) -> str:
    return " ".join(f"{k}={_text(v)}" for k, v in {**offer.shared, **offer.addon}.items())


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
