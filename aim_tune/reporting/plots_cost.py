"""Pictures that set scores against what they cost: seconds, step time, parameters, memory.

Drawn as in plots.py. Times are of one type of device, the one that most of the trainings ran on; where there
were others, the sentence says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aim_tune.ledger import History, Training
from aim_tune.reporting.plots import Picture, arm_look, drawn_svg
from aim_tune.reporting.words import count, signed
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.devices import device_counts, on_one_type
from aim_tune.stats.evidence import twin_scores, whole_blocks
from aim_tune.stats.tuning import expected_best_curve
from aim_tune.stats.verdict import Verdict


def expected_best_over_time(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """5: expected best validation accuracy against the training seconds that so many trials take."""
    blocks, twins = whole_blocks(study, history), study.protocol.twins
    if verdict.arm is None or len(blocks) < 3 or twins < 2 or verdict.sampler != "random":
        return None
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    rows = history.rows("twin")
    timed = on_one_type(rows)
    for arm in study.arms:
        own = twin_scores(history, blocks, arm, BASELINE)[0]
        seconds = [t.result.seconds for t in timed if t.arm == arm and t.result and t.score]
        if seconds and not np.isnan(own).all(axis=1).any():
            curve, error = expected_best_curve(own, 3 * twins)
            curves[arm] = (np.mean(seconds) * np.arange(1, len(curve) + 1), curve, error)
    if not {verdict.arm, BASELINE} <= set(curves):
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for arm, (x, curve, error) in curves.items():
            color, marker = arm_look(study.arms, arm)
            ax.fill_between(x, curve - error, curve + error, color=color, alpha=0.16, lw=0)
            ax.plot(x, curve, color=color, marker=marker, ms=3.5, label=arm)
        ax.set_xlim(left=0)
        ax.set_xlabel("training seconds of so many trials")
        ax.set_ylabel("expected best validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower right")

    x, base, _ = curves[BASELINE]
    arm_x, arm_curve, _ = curves[verdict.arm]
    budget = float(min(x[-1], arm_x[-1]))
    gap = float(np.interp(budget, arm_x, arm_curve) - np.interp(budget, x, base))
    return Picture(
        name="tuning-seconds",
        title="And at equal training time?",
        sentence=f"With {budget:.3g} s of training each, {verdict.arm} is expected {signed(gap)} points from "
        f"baseline; one trial takes {arm_x[0]:.3g} s against {x[0]:.3g} s{_where(rows)}. Bands: one standard "
        "error over blocks.",
        svg=drawn_svg("tuning-seconds", draw),
    )


def time_to_target(study: Study, history: History) -> Picture | None:
    """6: share of confirm runs that have reached the target, against training seconds."""
    confirm = [t for t in history.rows("confirm") if t.curve]
    timed = on_one_type(confirm)
    runs = {arm: [t for t in timed if t.arm == arm] for arm in study.arms}
    runs = {arm: rows for arm, rows in runs.items() if rows}
    if BASELINE not in runs or len(runs) < 2:
        return None
    target = float(np.median([max(m.val_accuracy for m in t.curve) for t in runs[BASELINE]]))
    times = {arm: [_reached(t, target) for t in rows] for arm, rows in runs.items()}
    end = max(t.curve[-1].seconds for rows in runs.values() for t in rows)

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for arm, reached in times.items():
            color, _ = arm_look(study.arms, arm)
            known = sorted(s for s in reached if s is not None)
            shares = [100 * i / len(reached) for i in range(len(known) + 1)]
            ax.step([0, *known, end], [*shares, shares[-1]], where="post", color=color, label=arm)
        ax.set_xlim(0, end)
        ax.set_ylim(-2, 102)
        ax.set_xlabel("training seconds")
        ax.set_ylabel(f"runs at {100 * target:.1f} % validation, %")
        ax.grid()
        ax.legend(loc="upper left")

    seen = "; ".join(_arrivals(arm, reached) for arm, reached in times.items())
    return Picture(
        name="target",
        title="Who gets there first?",
        sentence=f"The target is what half of the baseline's confirm runs reach, {100 * target:.1f} % of the "
        f"validation images. {seen}{_where(confirm)}.",
        svg=drawn_svg("target", draw),
    )


def _where(rows: Sequence[Training]) -> str:
    """On which type of device times were taken; "" where all of `rows` ran on it."""
    counts, used = device_counts(rows), len(on_one_type(rows))
    others = sum(bool(t.result) for t in rows) - used
    return (
        f" on {next(iter(counts))} ({count(others, 'training')} elsewhere)"
        if others and used
        else ""
    )


def _reached(training: Training, target: float) -> float | None:
    """Training seconds at the first pass at or above the target."""
    return next((m.seconds for m in training.curve if m.val_accuracy >= target), None)


def _arrivals(arm: str, reached: Sequence[float | None]) -> str:
    known = [s for s in reached if s is not None]
    after = f", in the median after {np.median(known):.3g} s" if known else ""
    return f"{arm}: {len(known)} of {count(len(reached), 'run')}{after}"


_NAMES = {"ms a step": "step time"}


def pareto(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """7: mean test score of each arm against what it costs; not drawn while blocks are missing."""
    arms = {a: s for a, s in verdict.arms.items() if s.mean_points is not None}
    if verdict.interim or verdict.arm is None or len(arms) < 2:
        return None
    panels: dict[str, dict[str, float]] = {
        "ms a step": {a: s.step_ms for a, s in arms.items() if s.step_ms},
        "parameters": {a: float(s.parameters) for a, s in arms.items() if s.parameters},
        "peak MiB": {a: peak for a in arms if (peak := _peak_mib(history, a, verdict.timed_on))},
    }
    panels = {what: costs for what, costs in panels.items() if len(costs) == len(arms)}
    if not panels:
        return None
    scores = {a: (s.mean_points or 0.0, s.sd_points or 0.0) for a, s in arms.items()}

    def draw(figure: Figure) -> None:
        for i, (what, costs) in enumerate(panels.items()):
            ax = figure.add_subplot(1, len(panels), i + 1)
            _pareto_panel(ax, study, costs, scores)
            ax.set_xlabel(what)
            if i:
                ax.tick_params(labelleft=False)
            else:
                ax.set_ylabel("test accuracy, %")
                ax.legend(loc="best", handletextpad=0.1)

    over = {what: costs[verdict.arm] / costs[BASELINE] for what, costs in panels.items()}
    if "ms a step" in panels:
        over["ms a step"] = verdict.devices[verdict.timed_on].step_ratio[verdict.arm]
    ratios = [f"{r:.2f} times the {_NAMES.get(what, what)}" for what, r in over.items()]
    where = f" on {verdict.timed_on}" if verdict.mixed else ""
    change = scores[verdict.arm][0] - scores[BASELINE][0]
    return Picture(
        name="pareto",
        title="What does it cost?",
        sentence=f"{verdict.arm} takes {' and '.join(ratios)} of baseline{where}, for "
        f"{signed(change)} points. Up and to the left is better; whiskers: sd over confirm runs.",
        svg=drawn_svg("pareto", draw, height=3.0),
    )


def _pareto_panel(
    ax: Axes,
    study: Study,
    costs: Mapping[str, float],
    scores: Mapping[str, tuple[float, float]],
) -> None:
    for arm, cost in costs.items():
        color, marker = arm_look(study.arms, arm)
        mean, sd = scores[arm]
        ax.plot([cost, cost], [mean - sd, mean + sd], color=color, lw=1.0)
        ax.plot([cost], [mean], marker, color=color, ms=7, ls="", label=arm)
    ax.set_xlim(0, 1.2 * max(costs.values()))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
    )
    ax.grid()


def _peak_mib(history: History, arm: str, device: str) -> float | None:
    """Median peak memory of the arm's confirm runs on a type of device; None on a CPU, where it is not
    known."""
    rows = [t for t in history.rows("confirm", arm) if t.device == device]
    known = [t.result.peak_mib for t in rows if t.result and t.result.peak_mib]
    return float(np.median(known)) if known else None
