"""Pictures of the search inside the blocks: twins, what more trials would bring, which setting matters.

Drawn as in plots.py, from validation scores: they choose points and prove nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aim_tune.ledger import History
from aim_tune.reporting.plots import INK, Picture, arm_look, drawn_svg, every, only_every
from aim_tune.reporting.words import count, signed
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.evidence import twin_scores, whole_blocks
from aim_tune.stats.tuning import expected_best_curve
from aim_tune.stats.verdict import Verdict

Importances: TypeAlias = Mapping[str, Mapping[str, tuple[float, float, float]]]
"""Arm -> setting -> (mean, low, high) over blocks; shares of 1."""


def twin_scatter(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """3: validation accuracy of baseline and each other arm at the same shared settings."""
    blocks = whole_blocks(study, history)
    if verdict.arm is None or not blocks:
        return None
    others = [a for a in study.arms if a != BASELINE]
    clouds = {a: _known_twins(twin_scores(history, blocks, a, BASELINE)) for a in others}
    clouds = {a: c for a, c in clouds.items() if c.size}
    if verdict.arm not in clouds:
        return None

    step = every(clouds[verdict.arm].shape[1])

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        low = min(c.min() for c in clouds.values()) - 1
        high = max(c.max() for c in clouds.values()) + 1
        ax.plot([low, high], [low, high], color=INK, lw=0.8)
        for arm, (own, base) in sorted(clouds.items(), key=lambda item: item[0] == verdict.arm):
            color, marker = arm_look(study.arms, arm)
            faint = 0.8 if arm == verdict.arm else 0.45
            shown = slice(None, None, step)
            ax.plot(
                base[shown], own[shown], marker, color=color, ms=4.5, alpha=faint, mew=0, label=arm
            )
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_aspect("equal")
        ax.set_xlabel("baseline, validation accuracy, %")
        ax.set_ylabel("the arm at the same point, %")
        ax.grid()
        ax.legend(loc="best", handletextpad=0.2)

    own, base = clouds[verdict.arm]
    above = int(np.sum(own > base))
    r = verdict.twin_correlation
    paired = f"; the arms' correlation is {r:.2f}" if r is not None else ""
    return Picture(
        name="twins",
        title="Does it help everywhere, or only at bad settings?",
        sentence=f"At the same shared settings {verdict.arm} scores above baseline in {above} of "
        f"{len(own)} twins{paired}. Above the diagonal the arm is ahead.{only_every(step, 'twin')}",
        svg=drawn_svg("twins", draw, height=3.6),
    )


def _known_twins(scores_2BN: np.ndarray) -> np.ndarray:
    flat = scores_2BN.reshape(2, -1)
    return flat[:, ~np.isnan(flat).any(axis=0)]


def expected_best_plot(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """4: expected best validation accuracy against trials, one jackknife error over blocks as band."""
    blocks, twins = whole_blocks(study, history), study.protocol.twins
    if verdict.arm is None or len(blocks) < 3 or twins < 2 or verdict.sampler != "random":
        return None
    curves = {}
    for arm in study.arms:
        own = twin_scores(history, blocks, arm, BASELINE)[0]
        if not np.isnan(own).all(axis=1).any():
            curves[arm] = expected_best_curve(own, 3 * twins)

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        ax.axvline(twins, color=INK, lw=0.8, ls=(0, (2, 1.5)))
        for arm, (curve, error) in curves.items():
            color, marker = arm_look(study.arms, arm)
            x = np.arange(1, len(curve) + 1)
            ax.fill_between(x, curve - error, curve + error, color=color, alpha=0.16, lw=0)
            ax.plot(x, curve, color=color, marker=marker, ms=3.5, label=arm)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("trials (dashed: the tuning budget of this study)")
        ax.set_ylabel("expected best validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower right")

    if verdict.gap is None:
        seen = (
            "Expected best of that many random trials; the band is one standard error over blocks."
        )
    else:
        (half, full), (at_half, at_full) = verdict.gap.trials, verdict.gap.points
        trend = "is still closing" if verdict.gap.closing else "does not clearly shrink"
        seen = (
            f"The gap between {verdict.arm} and baseline is {signed(at_half)} points at "
            f"{count(half, 'trial')} and {signed(at_full)} at {full}: it {trend}. Bands: one standard error "
            "over blocks."
        )
    return Picture(
        name="tuning",
        title="Would more tuning of the baseline close the gap?",
        sentence=seen,
        svg=drawn_svg("tuning", draw),
    )


def importance_bars(
    study: Study, importances: Importances, method: str = "fANOVA"
) -> Picture | None:
    """8: importance of each setting per arm, whiskers over blocks."""
    arms = [a for a in study.arms if importances.get(a)]
    if not arms:
        return None
    settings = sorted(
        {s for a in arms for s in importances[a]},
        key=lambda s: (-max(importances[a].get(s, (0.0,))[0] for a in arms), s),
    )

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        thick = 0.8 / len(arms)
        for i, arm in enumerate(arms):
            color, _ = arm_look(study.arms, arm)
            for y, setting in enumerate(settings):
                if setting in importances[arm]:
                    mean, low, high = (100 * v for v in importances[arm][setting])
                    at = y + (i - (len(arms) - 1) / 2) * thick
                    label = arm if setting == next(iter(importances[arm])) else None
                    ax.barh(at, mean, thick * 0.9, color=color, alpha=0.8, label=label)
                    ax.plot([low, high], [at, at], color=INK, lw=1.0)
        ax.set_yticks(range(len(settings)), settings)
        ax.set_ylim(len(settings) - 0.4, -0.6)
        ax.set_xlabel("share of what decides the validation accuracy, %")
        ax.set_xlim(left=0)
        ax.grid(axis="x")
        ax.legend(loc="lower right")

    tops = {a: max(importances[a], key=lambda s: importances[a][s][0]) for a in arms}
    shares = {a: f"{100 * importances[a][s][0]:.0f} %" for a, s in tops.items()}
    named = [f"{setting} for {arm} ({shares[arm]})" for arm, setting in tops.items()]
    if len(arms) > 1 and len(set(tops.values())) == 1:
        each = ", ".join(f"{arm} {share}" for arm, share in shares.items())
        named = [f"{tops[arms[0]]} for every arm ({each})"]
    return Picture(
        name="importance",
        title="Which setting matters?",
        sentence=f"The most important setting is {', '.join(named)} ({method}; whiskers: one block left "
        "out).",
        svg=drawn_svg(
            "importance", draw, height=1.2 + 0.3 * len(settings) * max(1.0, len(arms) / 2)
        ),
    )
