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
    from aim_tune.data.info import DataInfo
    from aim_tune.reporting.terminal import Console
    from aim_tune.spec import Study

TRIAL_STEPS = 20
"""Steps of each arm that are trained to time them."""


def show_plan(
    study: Study,
    info: DataInfo,
    console: Console,
    *,
    effect: float | None = None,
    slots: int | None = None,
) -> None:
    """What the study takes and what it can show; trains a few steps of each arm to time them."""
    from aim_tune.protocol.plan import make_plan
    from aim_tune.reporting.progress import duration

    plan = make_plan(study, info, effect=effect)
    stages = ", ".join(f"{stage} {count}" for stage, count in plan.by_stage.items() if count)
    lines = {
        "study": f"{study.name} ({study.study_hash})",
        "data": f"{info.name}: {info.train} training, {info.val} validation, {info.test} sealed test images",
        "requests": f"{plan.requests}",
        "trainings": f"{plan.trainings} ({stages}), {plan.steps_per_training} steps each",
        "test looks": f"{plan.test_looks}",
    }
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
        enough = plan.effect_blocks
        lines["effect"] = (
            f"{found}; 80 % takes {f'{enough} blocks' if enough else 'more blocks than we plan for'}"
        )
    costs = [_trial_run(study, arm) for arm in study.arms]
    slots = slots or max(1, len(os.sched_getaffinity(0)) // study.resources.cpu)
    seconds = sum(c.seconds for c in costs) / len(costs) * plan.trainings / slots
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


@dataclass(frozen=True, kw_only=True)
class _Cost:
    """What one training of an arm takes here, from a few steps of it."""

    arm: str
    parameters: int
    trainable: int
    flops: int | None
    step_ms: float
    seconds: float


def _trial_run(study: Study, arm: str) -> _Cost:
    """Train an arm for a few steps at the study's first point; keeps nothing."""
    from aim_tune.errors import ResourceError
    from aim_tune.protocol import Machine
    from aim_tune.spec import Request
    from aim_tune.training.schedules import total_steps
    from aim_tune.twin import catalog_of, open_source, train_arm

    request = Machine(study).ask()
    assert isinstance(request, Request)
    info = open_source(study.data, catalog_of(study.plugins)).info
    steps = total_steps(study.recipe.at(request.arms[arm].shared), info.train)
    recipe = replace(study.recipe, steps=min(steps, TRIAL_STEPS), epochs=None, evaluations=1)
    short = replace(study, recipe=recipe)
    try:
        train_arm(short, request, arm)  # pays for imports, data and caches
    except ResourceError:  # a plan may be made where the GPUs are not
        short = replace(short, resources=replace(study.resources, gpu=0))
        train_arm(short, request, arm)
    began = time.perf_counter()
    result = train_arm(short, request, arm).result
    other_s = time.perf_counter() - began - result.seconds  # building and one validation pass
    step_ms = result.step_ms or 1000 * result.seconds / max(1, result.steps)
    return _Cost(
        arm=arm,
        parameters=result.parameters,
        trainable=result.trainable,
        flops=result.flops,
        step_ms=step_ms,
        seconds=steps * step_ms / 1000 + study.recipe.evaluations * other_s,
    )
