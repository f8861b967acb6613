"""The explore stage: which design of the add-on goes into the blocks? Search, finalists, choice.

Pure: stages out, told stages in. Trial 0 is the authors' published design at the middle of the shared
ranges; after a warm start trial 1 is the best earlier point, and TPE knows the earlier results, which count
for nothing else (no ladder, finalist, design or range). Every arm has an early-stopping ladder of its own
(median rule, Golovin et al. 2017): a shared one would favor the arm that learns faster. No claim comes from
here. It runs nothing, keeps no file and sees no test score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from aim_tune.protocol.earlier import EarlierTrial, digest_of
from aim_tune.protocol.points import (
    Recorded,
    addon_mean,
    nothing_recorded,
    point_seed,
    prefixed,
    same_point,
    values_of,
    whole_space,
)
from aim_tune.protocol.sampling import (
    Direction,
    Space,
    Stopped,
    TpeSearch,
    Value,
    middle,
    nearest,
    varies,
)
from aim_tune.protocol.stages import Scores, Stage, Told, argmax, mean, rank
from aim_tune.spec.request import Ladder, Point
from aim_tune.spec.study import FINAL_SEEDS, Study
from aim_tune.spec.values import canonical
from aim_tune.stats.narrow import Trial, narrowed
from aim_tune.tables import catalog_of

DIRECTIONS: Mapping[str, Direction] = {
    "val_accuracy": "maximize",
    "step_ms": "minimize",
    "parameters": "minimize",
}
RUNGS = (0.25, 0.5)
"""Shares of a training after which it may be stopped (the next validation pass)."""
LEAST_TOLD = 5
"""Trainings of the arm that must have come to a rung before it stops one."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What the blocks go on with."""

    design: Mapping[str, Any]
    """Add-on settings."""
    space: Space
    """What the blocks draw from: the design fixed, shared ranges as they are or narrowed."""


class ExploreStage(Stage):
    """The search by TPE over everything, all trials on one set of streams."""

    def __init__(
        self,
        study: Study,
        recorded: Recorded = nothing_recorded,
        earlier: Sequence[EarlierTrial] = (),
    ) -> None:
        explore = study.protocol.explore
        _check_earlier(study, earlier)
        self.home = home_of(study)
        """What its streams and its proposals' seeds are named after."""
        super().__init__(
            kind="explore",
            block=0,
            order=0,
            size=explore.trials,
            lag=explore.lag,
            propose=self._propose_point,
            place=lambda number: (self.home, f"explore/{number}"),
        )
        self.study = study
        self._seen: dict[str, int] = {}
        """Shared and add-on settings -> the first trial that had them."""
        self._repeats: list[bool] = []
        self._recorded = recorded
        self._space = space = whole_space(study)
        self._search = TpeSearch(
            space,
            trials=explore.trials,
            lag=explore.lag,
            starts=_starts(study, space, earlier),
            earlier=[(_values(space, trial), self._worth(trial.told)) for trial in earlier],
            directions=[
                "maximize" if o == "val_accuracy" else "minimize" for o in explore.objectives
            ],
        )

    def _propose_point(self, number: int, results: Sequence[Scores | None]) -> dict[str, Point]:
        values = self._search.ask(
            self._value,
            seed=point_seed(self.study, self.home, number),
            recorded=values_of(self._recorded(f"explore/{number}"), self._space),
        )
        self._repeats.append(self._seen.setdefault(canonical(values), number) < number)
        return same_point(values, self.study.explore_arms)

    def _value(self, number: int) -> Value:
        return self._worth(self.told[number], self._timed_on(number))

    def _worth(self, trial: Mapping[str, Told], timed_on: str = "") -> Value:
        """What TPE learns of a trial: the mean of the arms that have the add-on; step times only of the
        device `timed_on`."""
        told = _deciding(self.study, trial)
        if any(one.pruned for one in told) and all(one.passes for one in told):
            shortest = min(len(one.passes) for one in told)
            return Stopped(fmean(one.passes[shortest - 1] for one in told), shortest)
        if not _timed_together(told) or told[0].device != timed_on:
            told = [replace(one, step_ms=None) for one in told]
        return [_objective(told, name) for name in self.study.protocol.explore.objectives]

    def _timed_on(self, number: int) -> str:
        """The one type of device whose step times the search is told: that of the first trial that has
        any. Of trials up to `number`, which are all told by now, so that timing does not decide."""
        rows = (_deciding(self.study, self.told[i]) for i in range(number + 1))
        return next((row[0].device for row in rows if _timed_together(row)), "")

    def ladders(self, number: int) -> Mapping[str, Ladder]:
        """From what was told before the request was asked, and nothing that became known since."""
        explore = self.study.protocol.explore
        before = self._first_told(number - explore.lag + 1) if explore.stopping else ()
        passes = {arm: [told[arm].passes for told in before] for arm in self.study.explore_arms}
        found = {arm: ladder(of, self.study.recipe.evaluations) for arm, of in passes.items()}
        return {arm: rungs for arm, rungs in found.items() if rungs}

    def _first_told(self, count: int) -> list[Mapping[str, Told]]:
        """Of the first `count` trials, each point once."""
        return [self.told[i] for i in range(max(0, count)) if not self._repeats[i]]

    def trials(self) -> list[Trial]:
        """What narrowing looks at."""
        return [
            Trial(
                shared=next(iter(points.values())).shared,
                scores={arm: told.whole for arm, told in self.told[number].items()},
                repeat=self._repeats[number],
            )
            for number, points in enumerate(self.points)
        ]


def home_of(study: Study) -> str:
    """`explore`; after a warm start a name that no other search has. With the seed of the earlier study
    its best point would else be trained on the very streams on which it was lucky."""
    start = study.protocol.explore.went_on_from
    return f"explore/after/{start.digest}" if start else "explore"


def _check_earlier(study: Study, earlier: Sequence[EarlierTrial]) -> None:
    asked, start = study.protocol.explore.warm_start, study.protocol.explore.went_on_from
    assert not isinstance(asked, str), f"nobody has read what comes over from {asked}"
    found = digest_of(earlier) if earlier else None
    assert found == (start.digest if start else None), (
        f"{found} is not what the study names: {start}"
    )


def _starts(study: Study, space: Space, earlier: Sequence[EarlierTrial]) -> list[Mapping[str, Any]]:
    """The first points: the published design, and the earlier point that is best by accuracy if it is
    another."""
    first = nearest(space, first_wanted(study))
    values = [addon_mean(study, {a: t.whole for a, t in trial.told.items()}) for trial in earlier]
    if all(value is None for value in values):
        return [first]
    best = _values(space, earlier[argmax(values)])
    return [first] if canonical(best) == canonical(first) else [first, best]


def _values(space: Space, trial: EarlierTrial) -> dict[str, Any]:
    """Its point as one of this space; settings that came with a later version stand as they are fixed."""
    point = trial.point
    values = {**prefixed("shared.", point.shared), **prefixed("addon.", point.addon)}
    fixed = {name: value for name, value in middle(space).items() if not varies(space[name])}
    return {**fixed, **values}


def ladder(passes: Sequence[Sequence[float]], evaluations: int) -> Ladder:
    """The rungs of one arm: the median of its trainings that came so far.

    >>> ladder([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0.9]], 4)
    ((1, 0.5),)
    """
    numbers = sorted({math.ceil(share * evaluations) for share in RUNGS})
    reached = {n: [p[n - 1] for p in passes if len(p) >= n] for n in numbers}
    return tuple((n, median(r)) for n, r in reached.items() if len(r) >= LEAST_TOLD)


def first_wanted(study: Study) -> dict[str, Any]:
    """The add-on's published settings, named as in a space."""
    rows = catalog_of(study.plugins).addons
    row = rows.get(study.addon.name) if study.addon is not None else None
    return prefixed("addon.", row.published if row is not None else {})


def finals_stage(study: Study, explore: ExploreStage) -> Stage:
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
            f"{explore.home}/seed/{number // len(finalists)}",
            f"explore/{explore.size + number}",
        ),
    )


def choose(study: Study, explore: ExploreStage, last: Stage) -> Chosen:
    """The design by the `last` stage (explore or its finals), the ranges by the trials of `explore`."""
    design = best_design(study, last)
    narrow = study.protocol.explore.narrow
    shared = narrowed(study.shared, explore.trials()) if narrow else study.shared
    return Chosen(design=design, space=whole_space(study, design, shared))


def best_design(study: Study, stage: Stage) -> dict[str, Any]:
    """Add-on settings of the best explore trial: by the mean of the arms that have the add-on
    (choosing for one of them would favor it), for a finalist by its mean over the fresh seeds.
    The first where none has a score."""
    values = _accuracies(study, stage)
    if stage.kind == "finals":
        count = stage.size // FINAL_SEEDS
        values = [mean(values[i::count]) for i in range(count)]
    best = stage.points[argmax(values)]
    arms = [arm for arm in study.addon_arms if arm in best]
    return dict(best[arms[0]].addon) if arms else {}


def _finalists(study: Study, explore: Stage) -> list[Mapping[str, Point]]:
    """The best trial of each of the best designs (of the best points without an add-on); filled up
    with the first, whose repeats are duplicates and cost nothing: the number of requests is known
    beforehand."""
    wanted = min(study.protocol.explore.finalists, explore.size)
    values = _accuracies(study, explore)
    ranked = sorted(range(explore.size), key=lambda i: -rank(values[i]))  # stable: ties in order
    best: dict[str, Mapping[str, Point]] = {}
    for number in ranked:
        points = explore.points[number]
        arms = [arm for arm in study.addon_arms if arm in points] or list(points)
        point = points[arms[0]]
        best.setdefault(canonical(dict(point.addon or point.shared)), points)
    chosen = list(best.values())[:wanted]
    return chosen + chosen[:1] * (wanted - len(chosen))


def _accuracies(study: Study, stage: Stage) -> list[float | None]:
    """By trial, the mean of the arms that have the add-on; None where one failed or was stopped."""
    whole = [{arm: told.whole for arm, told in row.items()} for row in stage.told]
    return [addon_mean(study, scores) for scores in whole]


def _deciding(study: Study, told: Mapping[str, Told]) -> list[Told]:
    """The arms that the search is led by: those with the add-on; all where none has it."""
    return [told[arm] for arm in study.addon_arms if arm in told] or list(told.values())


def _timed_together(told: Sequence[Told]) -> bool:
    """Whether all have a step time, of one type of device."""
    return len({one.device for one in told}) == 1 and all(one.step_ms is not None for one in told)


def _objective(told: Sequence[Told], name: str) -> float:
    """Mean over the deciding arms; NaN where one has none."""
    values = [one.score if name == "val_accuracy" else getattr(one, name) for one in told]
    found = mean([None if value is None else float(value) for value in values])
    return math.nan if found is None else found
