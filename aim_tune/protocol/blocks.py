"""The blocks: twins, each arm's own best point, confirm pairs; and the same again for arms that wait.

A block's later arms (attribution: after_better) get the very points and streams of its first arms, under
positions of their own: after/3/twin/2 belongs to block/3/twin/2. Matched arms are told here what the
study has measured. Pure: stages out, told stages in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from aim_tune.errors import UserError
from aim_tune.protocol.points import (
    Recorded,
    even_mean,
    nothing_recorded,
    random_points,
    same_point,
    searched_points,
)
from aim_tune.protocol.sampling import Space, middle
from aim_tune.protocol.stages import Stage, Told, argmax
from aim_tune.spec.request import Point
from aim_tune.spec.study import BASELINE, MEASURED, STEP_MATCHED, TIME_MATCHED, Recipe, Study

Allotted = Callable[[Recipe], int]
"""Optimizer steps of a training."""


def twin_stage(
    study: Study,
    space: Space,
    block: int,
    arms: Sequence[str],
    recorded: Recorded = nothing_recorded,
) -> Stage:
    """The draws of a block, the same for every arm."""
    protocol, home = study.protocol, f"block/{block}/twin"
    searches = not protocol.draws_at_random
    return Stage(
        kind="twin",
        block=block,
        order=_order(study, block),
        size=protocol.twins,
        lag=protocol.explore.lag if searches else None,
        propose=searched_points(study, space, home, protocol.twins, even_mean, arms, recorded)
        if searches
        else random_points(study, space, home, arms),
        place=lambda number: (f"block/{block}", f"{home}/{number}"),
    )


def confirm_stage(study: Study, twins: Stage) -> Stage:
    """Fresh trainings of each arm's own best point."""
    best = {arm: best_point(twins, arm) for arm in twins.points[0]}
    place = twins.place(0)[1].partition("/twin/")[0]
    return Stage(
        kind="confirm",
        block=twins.block,
        order=twins.order + twins.size,
        size=study.protocol.confirm,
        lag=None,
        propose=lambda number, results: best,
        place=lambda number: (f"block/{twins.block}", f"{place}/confirm/{number}"),
    )


def later_stage(study: Study, twins: Stage) -> Stage:
    """The same draws once more, for the arms that waited."""
    block = twins.block

    def again(number: int, results: object) -> dict[str, Point]:
        point = twins.points[number][study.primary or BASELINE]
        return dict.fromkeys(study.later_arms, point)

    return Stage(
        kind="twin",
        block=block,
        order=_order(study, study.protocol.blocks + block),
        size=twins.size,
        lag=None,
        propose=again,
        place=lambda number: (f"block/{block}", f"after/{block}/twin/{number}"),
    )


def match_stage(study: Study, space: Space) -> Stage:
    """The one request that measures step times, before the first training of a measured arm."""
    arms = [a for a in study.arms if a in (BASELINE, study.primary, STEP_MATCHED)]
    points = same_point(middle(space), arms)
    return Stage(
        kind="match",
        block=0,
        order=study.protocol.explore.requests,
        size=1,
        lag=None,
        propose=lambda number, results: points,
        place=lambda number: ("match", "match/0"),
    )


def best_point(twins: Stage, arm: str) -> Point:
    """The arm's own best of the block; its first point where every twin failed, so that the arm
    still gets the trainings it was allotted."""
    return twins.points[argmax([scores[arm] for scores in twins.known])][arm]


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What measured arms need to cost what the primary arm costs."""

    longer: float
    """Step time of the primary arm over that of the baseline."""
    widen_to: int | None
    """Parameters at which a step of the baseline takes as long as one of the primary arm."""

    @classmethod
    def of(cls, study: Study, told: Mapping[str, Told]) -> Matched:
        """From match/0. Raises UserError where it failed (the arms cannot be built), or where a fault
        left parts of it to two types of device."""
        times = {arm: one.step_ms for arm, one in told.items()}
        primary, baseline = times[study.primary or ""], times[BASELINE]
        failed = [arm for arm, time in times.items() if not time]
        if failed or not primary or not baseline:
            arms = " and ".join(a for a in study.arms if a in MEASURED)
            raise UserError(
                f"match/0 could not measure the step time of {', '.join(failed)}, which {arms} needs; "
                "the ledger says why. Leave the arm out, or remove the cause and use --fork."
            )
        if len(devices := {one.device for one in told.values()}) > 1:
            each = ", ".join(f"{arm} on {one.device}" for arm, one in told.items())
            raise UserError(
                f"match/0 was interrupted and measured again on another type of device ({each}): step times "
                f"of {len(devices)} types are not compared. Use --fork, which measures anew."
            )
        wide = told.get(STEP_MATCHED)
        return cls(longer=primary / baseline, widen_to=wide.parameters if wide else None)

    def point(self, arm: str, point: Point) -> Point:
        """The point with what the arm's builder has to know."""
        if arm != STEP_MATCHED:
            return point
        return replace(point, addon={**point.addon, "widen_to": self.widen_to})


def granted_steps(
    study: Study,
    stage: str,
    arms: Mapping[str, Point],
    allotted: Allotted,
    matched: Matched | None,
) -> dict[str, int]:
    """Arm -> steps, for arms that are not trained for the recipe's: twins where search_fraction shortens
    them, and the arm that gets as many seconds as the primary one."""
    share = study.protocol.search_fraction if stage == "twin" else 1.0
    steps = {}
    for arm, point in arms.items():
        longer = matched.longer if matched and arm == TIME_MATCHED else 1.0
        if share * longer != 1.0:
            whole = allotted(study.recipe_of(arm, point.shared))
            steps[arm] = max(1, round(whole * share * longer))
    return steps


def _order(study: Study, block: int) -> int:
    """Place of a block's first request in the whole study; 1 is left for match/0."""
    p = study.protocol
    return p.explore.requests + 1 + block * (p.twins + p.confirm)
