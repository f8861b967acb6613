"""What a study would take and what it could show, before anything is written: `search --dry-run`.

The counts come from the protocol; times come from a few steps of each arm, trained here and thrown away.
Of the top layer: heavy libraries are imported where they are needed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aim_tune.data.info import DataInfo
    from aim_tune.ledger import TrainingResult
    from aim_tune.protocol.afford import Prices
    from aim_tune.protocol.earlier import Earlier
    from aim_tune.protocol.plan import Plan
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import Request, Study

TRIAL_STEPS = 20
"""Steps of each arm that are trained to time them."""


def show_plan(
    study: Study,
    info: DataInfo,
    console: Console,
    *,
    effect: float | None = None,
    slots: int | None = None,
    earlier: Earlier | None = None,
) -> None:
    """What the study takes, goes on from and can show; trains a few steps of each arm to time them."""
    from aim_tune.engine.warm_start import said
    from aim_tune.protocol.afford import sized
    from aim_tune.protocol.plan import make_plan
    from aim_tune.reporting.progress import duration

    costs = [_trial_run(study, arm, info) for arm in study.arms]
    lines_of_budget = {}
    if study.protocol.budget_gpu_hours is not None:
        prices = _prices(study, costs)
        study = sized(study, info, prices)
        lines_of_budget = {"budget": _budget(study, prices)}
    plan = make_plan(study, info, effect=effect)
    stages = ", ".join(f"{stage} {count}" for stage, count in plan.by_stage.items() if count)
    lines = {
        "study": f"{study.name} ({study.study_hash})",
        "data": f"{info.name}: {info.train} training, {info.val} validation, {info.test} sealed test images",
        "requests": f"{plan.requests}",
        "trainings": f"{plan.trainings} ({stages}), {plan.steps_per_training} steps each",
        "test looks": f"{plan.test_looks}",
        **lines_of_budget,
    }
    if earlier:
        lines["warm start"] = said(earlier)
    if study.protocol.looks:
        lines["looks"] = f"planned at {', '.join(map(str, study.protocol.looks))} blocks"
    if study.later_arms:
        arms = " and ".join(study.later_arms)
        lines["later"] = f"{arms} (counted above) only after {study.primary} was found better"
    if plan.mde_points is not None:
        lines["detectable"] = (
            f"a true difference of about {plan.mde_points:.1f} points in 80 % of studies (guess: "
            f"{plan.seed_sd_points:.2f} points between seeds)"
        )
        reach = "can" if plan.equivalence_reachable else "cannot"
        lines["equivalence"] = f"within +-{study.protocol.rope_points:g} points {reach} be shown"
    if plan.effect_power is not None:
        found = (
            f"{effect:g} points are found in {100 * plan.effect_power:.0f} % of studies like this"
        )
        lines["effect"] = f"{found}; 80 % {_takes(plan)}"
    slots = slots or max(1, len(os.sched_getaffinity(0)) // study.resources.cpu)
    whole = plan.steps / plan.steps_per_training  # shortened twins are parts of a training
    seconds = sum(c.seconds for c in costs) / len(costs) * whole / slots
    lines["time"] = (
        f"about {duration(seconds)} with {slots} slot{'s' * (slots > 1)} like this machine's"
    )
    for key, text in lines.items():
        console.print(f"{key:<12} {text}", soft_wrap=True)
    console.print(
        f"\n{'arm':<12} {'parameters':>12} {'trainable':>12} {'MFLOPs/image':>13} {'ms/step':>9}"
    )
    for c in costs:
        flops = "-" if c.flops is None else f"{c.flops / 1e6:.2f}"
        console.print(
            f"{c.arm:<12} {c.parameters:>12,} {c.trainable:>12,} {flops:>13} {c.step_ms:>9.1f}"
        )


def afforded(study: Study, info: DataInfo) -> Study:
    """`study` with the sizes that its budget pays for on this machine, from a few steps of each arm.

    Raises UserError where it pays for no study.
    """
    from aim_tune.protocol.afford import sized

    return sized(study, info, _prices(study, [_trial_run(study, arm, info) for arm in study.arms]))


def _prices(study: Study, costs: Sequence[_Cost]) -> Prices:
    from aim_tune.protocol.afford import Prices
    from aim_tune.spec.study import MEASURED

    devices = study.resources.gpu or study.resources.cpu
    hours = {c.arm: c.seconds * devices / 3600 for c in costs}
    for arm in set(hours) & set(MEASURED):  # made to cost what the primary arm costs
        hours[arm] = hours[str(study.primary)]
    return Prices(hours=hours, unit="GPU hours" if study.resources.gpu else "core hours")


def _budget(study: Study, prices: Prices) -> str:
    p = study.protocol
    return (
        f"{p.budget_gpu_hours:g} {prices.unit}: {p.blocks} blocks of {p.twins} twins and {p.confirm} "
        f"confirm pair{'s' * (p.confirm > 1)} take about {prices.whole(study):.3g}"
    )


def _takes(plan: Plan) -> str:
    """How many blocks an effect takes, or what is in reach."""
    from aim_tune.stats.paired import MOST_BLOCKS

    if plan.effect_blocks is not None:
        return f"takes {plan.effect_blocks} blocks"
    if plan.reach_points is None:
        return "cannot be planned for: nothing is compared"
    return (
        f"takes more than {MOST_BLOCKS} blocks: not within reach; the smallest difference that "
        f"{MOST_BLOCKS} blocks find is {plan.reach_points:.2f} points"
    )


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What one training of an arm takes here, from a few steps of it."""

    arm: str
    parameters: int
    trainable: int
    flops: int | None
    step_ms: float
    seconds: float


def _trial_run(study: Study, arm: str, info: DataInfo) -> _Cost:
    """Train an arm for a few steps in the middle of what is searched; keeps nothing."""
    from aim_tune.errors import ResourceError
    from aim_tune.training.schedules import total_steps
    from aim_tune.twin import train_arm

    request = _middle(study, arm)
    recipe = study.recipe_of(arm, request.arms[arm].shared)
    steps = total_steps(recipe, info.train)
    recipe = replace(study.recipe, evaluations=1)
    request = replace(request, steps={arm: min(steps, TRIAL_STEPS)})
    short = replace(study, recipe=recipe)
    try:
        train_arm(short, request, arm)  # pays for imports, data and caches
    except ResourceError:  # a plan may be made where the GPUs are not
        short = replace(short, resources=replace(study.resources, gpu=0))
        train_arm(short, request, arm)

    def timed(study: Study) -> tuple[TrainingResult, float]:
        began = time.perf_counter()
        result = train_arm(study, request, arm).result
        return result, time.perf_counter() - began - result.seconds

    result, other_s = timed(short)  # building, compiling and one validation pass
    compile_s = 0.0
    if short.recipe_of(arm, {}).compile:
        plain = replace(short, recipe=replace(recipe, compile=False), overrides={})
        compile_s, other_s = other_s, timed(plain)[1]
        compile_s = max(0.0, compile_s - other_s)
    step_ms = result.step_ms or 1000 * result.seconds / max(1, result.steps)
    return _Cost(
        arm=arm,
        parameters=result.parameters,
        trainable=result.trainable,
        flops=result.flops,
        step_ms=step_ms,
        seconds=steps * step_ms / 1000 + study.recipe.evaluations * other_s + compile_s,
    )


def _middle(study: Study, arm: str) -> Request:
    """A request for the middle of all ranges. A step of an arm that is yet to be widened is as its
    backbone's."""
    from aim_tune.protocol.points import same_point, whole_space
    from aim_tune.protocol.sampling import middle
    from aim_tune.spec import Point, Request
    from aim_tune.spec.request import STREAMS
    from aim_tune.spec.study import STEP_MATCHED

    point = same_point(middle(whole_space(study)), study.arms)[arm]
    if arm == STEP_MATCHED:
        point = Point(shared=point.shared, addon={**point.addon, "widen_to": 0})
    return Request(position="plan/0", arms={arm: point}, streams=dict.fromkeys(STREAMS, 0))
