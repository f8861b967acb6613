"""What a study will cost and what it can show, before anything runs. Pure arithmetic.

The spread between seeds is not known beforehand: it is guessed as sqrt(err / (2 n_test)), the lottery
of which test examples a training gets right, and the figures built on it are printed as guesses.
They leave out the crossed correction (how far the arms differ example by example cannot be guessed),
so the true figure may be somewhat larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aim_tune.protocol.sampling import middle
from aim_tune.spec.study import Study
from aim_tune.stats.paired import detectable_in_errors, t_quantile
from aim_tune.training.schedules import total_steps

if TYPE_CHECKING:
    from aim_tune.data.info import DataInfo

ERROR_GUESS = 0.2
"""Guess of a tuned network's test error, where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The size of a study."""

    requests: int
    """Twins, confirm pairs and explore trials: Ray Tune trials with `pack: twin`."""
    trainings: int
    """Networks to be trained; fewer where explore repeats a point."""
    by_stage: Mapping[str, int]
    """explore, twin, confirm -> trainings."""
    steps_per_training: int
    """Optimizer steps, at the middle of the searched ranges."""
    steps: int
    """Of all trainings."""
    test_looks: int
    """How often a network is scored on the sealed test examples."""
    explore_at_once: int | None
    """Explore requests that can run at the same time (the lag); None without explore."""
    seed_sd_points: float
    """Guessed sd of test accuracy between seeds."""
    mde_points: float | None
    """Smallest true difference found with 80 % power at that sd; None where nothing is compared."""
    equivalence_reachable: bool | None
    """Whether arms without any difference could be found equivalent: the 90 % interval fits into the
    ROPE at that sd. None where nothing is compared."""

    def seconds(self, step_ms: float, *, slots: int = 1) -> float:
        """Expected training time at `step_ms` per step, averaged over arms, in `slots` slots."""
        return self.steps * step_ms / 1000 / slots

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def make_plan(
    study: Study,
    info: DataInfo,
    *,
    error_guess: float = ERROR_GUESS,
) -> Plan:
    """The plan of a study on its data."""
    protocol, arms = study.protocol, len(study.arms)
    by_stage = {
        "explore": protocol.explore.trials * arms,
        "twin": protocol.blocks * protocol.twins * arms,
        "confirm": protocol.blocks * protocol.confirm * arms,
    }
    trainings = sum(by_stage.values())
    steps = total_steps(study.recipe.at(middle(study.shared)), info.train)
    seed_sd = 100 * math.sqrt(error_guess / (2 * info.test)) if info.test else 0.0
    error = _standard_error(study, seed_sd)
    return Plan(
        requests=study.requests_planned,
        trainings=trainings,
        by_stage=by_stage,
        steps_per_training=steps,
        steps=trainings * steps,
        test_looks=by_stage["confirm"],
        explore_at_once=protocol.explore.lag if protocol.explore.trials else None,
        seed_sd_points=seed_sd,
        mde_points=None if error is None else error * detectable_in_errors(protocol.blocks - 1),
        equivalence_reachable=None
        if error is None
        else error * t_quantile(protocol.blocks - 1, 0.10) < protocol.rope_points,
    )


def _standard_error(study: Study, seed_sd: float) -> float | None:
    """Of the mean difference between two arms over all confirm pairs; None where there is none."""
    protocol = study.protocol
    if not study.compares or protocol.blocks < 2 or not protocol.confirm or not seed_sd:
        return None
    return seed_sd * math.sqrt(2 / (protocol.confirm * protocol.blocks))
