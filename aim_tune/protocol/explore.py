"""The explore stage: which design of the add-on goes into the blocks? Search, finalists, choice.

Pure: stages out, told stages in. No claim comes from here. What it chooses is fixed before the first
block. It runs nothing, keeps no file and sees no test score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_tune.protocol.points import addon_mean, searched_points, whole_space
from aim_tune.protocol.stages import Stage, argmax, mean, rank
from aim_tune.spec.request import Point
from aim_tune.spec.study import FINAL_SEEDS, Study
from aim_tune.spec.values import canonical


def explore_stage(study: Study) -> Stage:
    """The search by TPE over everything, all trials on one set of streams."""
    explore = study.protocol.explore
    space = whole_space(study)
    return Stage(
        kind="explore",
        block=0,
        order=0,
        size=explore.trials,
        lag=explore.lag,
        propose=searched_points(study, space, "explore", explore.trials, addon_mean, start=True),
        place=lambda number: ("explore", f"explore/{number}"),
    )


def finals_stage(study: Study, explore: Stage) -> Stage:
    """Every finalist with each fresh seed, seed by seed; their numbers count on after the trials."""
    finalists = _finalists(study, explore)
    return Stage(
        kind="finals",
        block=0,
        order=explore.size,
        size=FINAL_SEEDS * len(finalists),
        lag=None,
        propose=lambda number, results: finalists[number % len(finalists)],
        place=lambda number: (
            f"explore/seed/{number // len(finalists)}",
            f"explore/{explore.size + number}",
        ),
    )


def _finalists(study: Study, explore: Stage) -> list[Mapping[str, Point]]:
    """The best trial of each of the best designs (of the best points without an add-on); filled up
    with the first, whose repeats are duplicates and cost nothing: the number of requests is known
    beforehand."""
    wanted = min(study.protocol.explore.finalists, explore.size)
    values = [addon_mean(study, scores) for scores in explore.known]
    ranked = sorted(range(explore.size), key=lambda i: -rank(values[i]))  # stable: ties in order
    best: dict[str, Mapping[str, Point]] = {}
    for number in ranked:
        points = explore.points[number]
        point = points[(study.addon_arms or study.arms)[0]]
        best.setdefault(canonical(dict(point.addon or point.shared)), points)
    chosen = list(best.values())[:wanted]
    return chosen + chosen[:1] * (wanted - len(chosen))


def best_design(study: Study, stage: Stage) -> dict[str, Any]:
    """Add-on settings of the best explore trial: by the mean of the arms that have the add-on
    (choosing for one of them would favor it), for a finalist by its mean over the fresh seeds.
    The first where none has a score."""
    values = [addon_mean(study, scores) for scores in stage.known]
    if stage.kind == "finals":
        count = stage.size // FINAL_SEEDS
        values = [mean(values[i::count]) for i in range(count)]
    best = stage.points[argmax(values)]
    arms = study.addon_arms
    return dict(best[arms[0]].addon) if arms else {}
