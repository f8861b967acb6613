"""Which pictures a report shows, in reading order: the numbers are those of the protocol's list.

Each one is drawn from the history alone and left out where the history has no data for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aim_tune.ledger import History
from aim_tune.reporting import (
    plots_cost,
    plots_detail,
    plots_explore,
    plots_memory,
    plots_trainings,
    plots_tuning,
    plots_verdict,
)
from aim_tune.reporting.plots import Picture
from aim_tune.reporting.plots_tuning import Importances
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import MOST_WEIGHED
from aim_tune.stats.verdict import Verdict


def pictures(
    study: Study,
    history: History,
    verdict: Verdict,
    importances: Importances | None = None,
    method: str = "fANOVA",
) -> list[Picture]:
    """All pictures that the history has data for."""
    drawn = [
        plots_verdict.verdict_strip(verdict),  # 1
        plots_verdict.paired_slopes(study, history, verdict),  # 2
        plots_tuning.twin_scatter(study, history, verdict),  # 3
        plots_tuning.expected_best_plot(study, history, verdict),  # 4
        plots_cost.expected_best_over_time(study, history, verdict),  # 5
        plots_cost.time_to_target(study, history),  # 6
        plots_cost.pareto(study, history, verdict),  # 7
        plots_explore.trade_offs(study, history, verdict),  # 7, of explore
        plots_tuning.importance_bars(study, importances or {}, _weighed(method, history)),  # 8
        plots_detail.setting_slices(study, history, verdict),  # 9
        plots_trainings.learning_curves(study, history),  # 10
        plots_detail.early_ranks(study, history),  # 11
        plots_memory.learned_memory(study, history),  # 12
        plots_detail.fixed_and_broken(study, history, verdict),  # 13
        plots_trainings.budget_ledger(study, verdict),  # 14
    ]
    return [p for p in drawn if p is not None]


def _weighed(method: str, history: History) -> str:
    """How importance was found, with how many trainings it looks at where there are more."""
    rows = Counter((t.stage, t.arm) for t in history.rows() if t.stage in ("explore", "twin"))
    if max(rows.values(), default=0) <= MOST_WEIGHED:
        return method
    return f"{method} of about {MOST_WEIGHED:,} trainings, spread evenly over the study"


AT_THE_END = ("slopes", "pareto", "changes")
"""Names of pictures that show test scores, and wait until the blocks are whole."""
COMPARING = (
    "verdict",
    "slopes",
    "twins",
    "tuning",
    "tuning-seconds",
    "target",
    "pareto",
    "changes",
)
"""Names of pictures that set an arm against the baseline."""
TIMED = ("tuning-seconds", "target", "pareto")
"""Names of pictures with a time axis."""
NEEDS = {
    "verdict": "whole blocks with confirm runs of both arms",
    "slopes": "whole blocks with confirm runs of both arms",
    "twins": "twins of one whole block",
    "tuning": "three whole blocks of 2 to 10 randomly drawn twins",
    "tuning-seconds": "three whole blocks of 2 to 10 randomly drawn twins",
    "target": "confirm runs of the baseline and another arm",
    "pareto": "test scores and costs of two arms",
    "importance": "several finished trainings of an arm and a setting that varies",
    "slices": "a searched setting of the add-on, tried at two values",
    "curves": "a training with a validation pass",
    "ranks": "six trainings of an arm with three validation passes each",
    "memory": "the add-on's first confirm run",
    "changes": "confirm pairs whose predictions were recorded",
    "budget": "a finished training",
}
"""Name of each picture, in the protocol's order -> what it is drawn from."""


def not_drawn(drawn: Sequence[Picture], verdict: Verdict) -> list[str]:
    """One line for each picture that is missing: its name and why."""
    there = {picture.name for picture in drawn}
    return [f"{name}: {_why(name, verdict)}" for name in NEEDS if name not in there]


def _why(name: str, verdict: Verdict) -> str:
    if verdict.verdict == "not_asked" and name in COMPARING:
        return "no arms were compared"
    if verdict.interim and name in AT_THE_END:
        return "shows test scores, and waits until every block is whole"
    elsewhere = " on one type of device" if verdict.mixed and name in TIMED else ""
    return f"needs {NEEDS[name]}{elsewhere}"
