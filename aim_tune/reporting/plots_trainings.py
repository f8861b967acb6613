"""Pictures of the trainings themselves: how they went, and what each arm was granted and used.

Drawn as in plots.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aim_tune.ledger import History, Training
from aim_tune.reporting.plots import Picture, arm_look, drawn_svg
from aim_tune.reporting.words import count
from aim_tune.spec.study import Study
from aim_tune.stats.budget import Budget
from aim_tune.stats.verdict import Verdict


def learning_curves(study: Study, history: History) -> Picture | None:
    """10: validation accuracy during training; median per arm, every run thin."""
    stage = "confirm" if any(t.curve for t in history.rows("confirm")) else None
    runs = {arm: [t for t in history.rows(stage, arm) if t.curve] for arm in study.arms}
    runs = {arm: rows for arm, rows in runs.items() if rows}
    if not runs:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for arm, rows in runs.items():
            color, _ = arm_look(study.arms, arm)
            for t in rows:
                x, y = [m.step for m in t.curve], [100 * m.val_accuracy for m in t.curve]
                ax.plot(x, y, color=color, lw=0.5, alpha=0.3)
        for arm, rows in runs.items():
            color, marker = arm_look(study.arms, arm)
            steps, median = _median_curve(rows)
            ax.plot(steps, median, color=color, marker=marker, ms=3.5, lw=2.0, label=arm)
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower right")

    ends = ", ".join(f"{arm} {_median_curve(rows)[1][-1]:.1f} %" for arm, rows in runs.items())
    half = ", ".join(f"{arm} {_at_half(rows):.1f} %" for arm, rows in runs.items())
    which = "confirm runs" if stage else "all trainings"
    return Picture(
        name="curves",
        title="Does one arm start slower?" if len(runs) > 1 else "How did training go?",
        sentence=f"Medians over {which} half-way: {half}; at the end: {ends}. Thin lines are single runs.",
        svg=drawn_svg("curves", draw),
    )


def _median_curve(rows: Sequence[Training]) -> tuple[list[int], list[float]]:
    """Median over runs at the steps that at least half of them measured."""
    by_step: dict[int, list[float]] = {}
    for t in rows:
        for m in t.curve:
            by_step.setdefault(m.step, []).append(100 * m.val_accuracy)
    common = max(map(len, by_step.values()))
    steps = sorted(s for s, values in by_step.items() if len(values) * 2 >= common)
    return steps, [float(np.median(by_step[s])) for s in steps]


def _at_half(rows: Sequence[Training]) -> float:
    steps, median = _median_curve(rows)
    return median[int(np.searchsorted(steps, steps[-1] / 2))]


def budget_ledger(study: Study, verdict: Verdict) -> Picture | None:
    """14: what each arm was granted and used."""
    budget = {arm: b for arm, b in verdict.budget.items() if b.trials}
    if not budget:
        return None
    panels: list[tuple[str, list[float]]] = [
        ("trainings", [b.trials for b in budget.values()]),
        ("steps allotted", [b.steps for b in budget.values()]),
    ]
    if not verdict.mixed:
        panels.append(("training seconds", [b.seconds for b in budget.values()]))

    def draw(figure: Figure) -> None:
        for i, (what, values) in enumerate(panels):
            ax = figure.add_subplot(1, len(panels), i + 1)
            _budget_panel(ax, study, list(budget), values)
            ax.set_title(what, fontsize=9)
            if i:
                ax.set_yticks([])

    same = len({(b.trials, b.steps) for b in budget.values()}) == 1
    one_arm, one = next(iter(budget.items()))
    who = "Every arm" if len(budget) > 1 else one_arm
    granted = (
        f"{who} was granted {count(one.trials, 'training')} and {count(one.steps, 'step')}"
        if same
        else "The arms were granted different budgets"
    )
    used = "; seconds on different types of device are not compared"
    if not verdict.mixed:
        used = _seconds_used(budget)
    bad = {
        a: (b.failed, b.diverged, b.early)
        for a, b in budget.items()
        if b.failed + b.diverged + b.early
    }
    faults = "; ".join(
        f"{a}: {f} failed, {d} diverged, {e} timed out" for a, (f, d, e) in bad.items()
    )
    return Picture(
        name="budget",
        title="Was it fair?" if len(budget) > 1 else "What was spent?",
        sentence=f"{granted}{used}. {faults or 'No training failed, diverged or ran out of time'}.",
        svg=drawn_svg("budget", draw, height=0.9 + 0.4 * len(budget)),
    )


def _seconds_used(budget: Mapping[str, Budget]) -> str:
    slow = max(budget, key=lambda a: budget[a].seconds)
    fast = min(budget, key=lambda a: budget[a].seconds)
    times = budget[slow].seconds / budget[fast].seconds if budget[fast].seconds else 0.0
    return f"; {slow} needed {times:.2f} times the seconds of {fast}" if times > 1 else ""


def _budget_panel(ax: Axes, study: Study, arms: Sequence[str], values: Sequence[float]) -> None:
    for y, (arm, value) in enumerate(zip(arms, values, strict=True)):
        ax.barh(y, value, 0.62, color=arm_look(study.arms, arm)[0], alpha=0.8)
        ax.annotate(
            f"{value:,.0f}",
            (value, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.set_xlim(0, 1.75 * max(*values, 1e-9))
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines["bottom"].set_visible(False)
