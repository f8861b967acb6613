"""What a study will cost and what it can show, before anything runs. Pure arithmetic.

The spread between seeds is not known beforehand: it is guessed as sqrt(err / (2 n_test)), the lottery
of which test examples a training gets right, and the figures built on it are printed as guesses.
To it comes the luck of each block's search, as measured by benchmarks/self_test.py (planned and measured
power: docs/evidence.md). How far the arms differ example by example cannot be guessed: where they do, the
true figure is larger.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scipy import stats

from aim_tune.ledger import History
from aim_tune.protocol.sampling import middle
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import requests_to_run
from aim_tune.stats.looks import look_level
from aim_tune.stats.paired import ALPHA, MOST_BLOCKS, detectable_in_errors, t_quantile
from aim_tune.training.schedules import total_steps

if TYPE_CHECKING:
    from aim_tune.data.info import DataInfo

TUNING_LUCK = 0.75
"""Variance that the search adds to a block difference, in variances between seeds: each arm's chosen
point is a little better or worse than the other's."""
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
    """explore, twin, confirm, export -> trainings."""
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
    effect_points: float | None = None
    """The true difference that was asked about, if any."""
    effect_power: float | None = None
    """Share of such studies that find it; None where not asked or nothing is compared."""
    effect_blocks: int | None = None
    """Fewest blocks that find it in 80 % of studies; None where not asked, or more than MOST_BLOCKS."""
    reach_points: float | None = None
    """Smallest true difference that MOST_BLOCKS blocks find; None where nothing is compared."""

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
    effect: float | None = None,
) -> Plan:
    """The plan of a study on its data; with `effect` (points), what it takes to find that difference."""
    protocol, arms = study.protocol, len(study.arms)
    by_stage = {
        "explore": protocol.explore.requests * len(study.explore_arms),
        "twin": protocol.blocks * protocol.twins * arms,
        "confirm": protocol.blocks * protocol.confirm * arms,
        "export": protocol.export_seeds * arms,
    }
    trainings = sum(by_stage.values())
    steps = total_steps(study.recipe.at(middle(study.shared)), info.train)
    seed_sd = 100 * math.sqrt(error_guess / (2 * info.test)) if info.test else 0.0
    error = _standard_error(study, seed_sd)
    return Plan(
        requests=requests_to_run(study, History()),
        trainings=trainings,
        by_stage=by_stage,
        steps_per_training=steps,
        steps=round(steps * (trainings - (1 - protocol.search_fraction) * by_stage["twin"])),
        test_looks=by_stage["confirm"],
        explore_at_once=protocol.explore.lag if protocol.explore.trials else None,
        seed_sd_points=seed_sd,
        mde_points=_detectable(study, seed_sd),
        equivalence_reachable=None
        if error is None
        else error * t_quantile(protocol.blocks - 1, 2 * _level(study)) < protocol.rope_points,
        effect_points=effect,
        effect_power=None
        if error is None or effect is None
        else power(study, effect, seed_sd=seed_sd),
        effect_blocks=None
        if error is None or effect is None
        else blocks_needed(study, effect, seed_sd=seed_sd),
        reach_points=_detectable(_with_blocks(study, MOST_BLOCKS), seed_sd),
    )


def power(study: Study, effect: float, *, seed_sd: float, alpha: float | None = None) -> float:
    """Chance that the whole study finds a true difference of `effect` points, of the right sign.

    `alpha` is the level of its last look by default; that an earlier one may find it is left out.
    """
    error = _standard_error(study, seed_sd)
    if error is None:
        return 0.0
    df = study.protocol.blocks - 1
    quantile = t_quantile(df, _level(study) if alpha is None else alpha)
    return float(stats.nct.sf(quantile, df, abs(effect) / error))


def blocks_needed(study: Study, effect: float, *, seed_sd: float) -> int | None:
    """Fewest blocks (same twins and confirm pairs) that find `effect` points in 80 % of studies.

    None where nothing is compared or MOST_BLOCKS are too few.
    """

    def found(blocks: int) -> bool:
        points = _detectable(_with_blocks(study, blocks), seed_sd)
        return points is not None and points <= abs(effect)

    sizes = range(2, MOST_BLOCKS + 1)
    place = bisect_left(sizes, True, key=found)  # what B blocks find, B + 1 find
    return sizes[place] if place < len(sizes) else None


def _with_blocks(study: Study, blocks: int) -> Study:
    return replace(study, protocol=replace(study.protocol, blocks=blocks))


def _level(study: Study) -> float:
    """Of the last look; planned looks share the error."""
    looks = study.protocol.looks
    return look_level(looks) if looks else ALPHA


def _detectable(study: Study, seed_sd: float) -> float | None:
    """True difference that is found with 80 % power, points; None where nothing is compared."""
    error = _standard_error(study, seed_sd)
    if error is None:
        return None
    return error * detectable_in_errors(study.protocol.blocks - 1, _level(study))


def _standard_error(study: Study, seed_sd: float) -> float | None:
    """Of the mean difference between two arms; None where there is none."""
    protocol = study.protocol
    if not study.compares or protocol.blocks < 2 or not protocol.confirm or not seed_sd:
        return None
    return seed_sd * math.sqrt((2 / protocol.confirm + TUNING_LUCK) / protocol.blocks)
