"""Which pictures a report shows, in reading order: the numbers are those of the protocol's list.

Each one is drawn from the history alone and left out where the history has no data for it.
"""

from __future__ import annotations

from aim_tune.ledger import History
from aim_tune.reporting import plots, plots_cost, plots_detail, plots_explore, plots_memory
from aim_tune.reporting.plots import Importances, Picture
from aim_tune.spec.study import Study
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
        plots.verdict_strip(verdict),  # 1
        plots.paired_slopes(study, history, verdict),  # 2
        plots.twin_scatter(study, history, verdict),  # 3
        plots.expected_best_plot(study, history, verdict),  # 4
        plots_cost.expected_best_over_time(study, history, verdict),  # 5
        plots_cost.time_to_target(study, history),  # 6
        plots_cost.pareto(study, history, verdict),  # 7
        plots_explore.trade_offs(study, history, verdict),  # 7, of explore
        plots.importance_bars(study, importances or {}, method),  # 8
        plots_detail.setting_slices(study, history, verdict),  # 9
        plots.learning_curves(study, history),  # 10
        plots_detail.early_ranks(study, history),  # 11
        plots_memory.learned_memory(study, history),  # 12
        plots_detail.fixed_and_broken(study, history, verdict),  # 13
        plots.budget_ledger(study, verdict),  # 14
    ]
    return [p for p in drawn if p is not None]
