"""Step times of several networks on one device, interleaved: one step of each in turn, so that whatever slows
the machine slows all alike. The steps are those of `loop`: augmentation, precision, optimizer included."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import islice
from statistics import median

import torch
from torch import Tensor, nn

from aim_tune.data.source import Source, Split
from aim_tune.spec.study import Recipe
from aim_tune.training.batches import Batches
from aim_tune.training.evaluate import memory_format
from aim_tune.training.group import ALONE, Group
from aim_tune.training.loop import _random_state_kept, _Run, forget_compiled

WARM_UP = 5
"""Rounds that do not count: compilation, caches, kernel choice, memory."""
ROUNDS = 30


def interleaved_step_ms(
    models: Mapping[str, nn.Module],
    source: Source,
    *,
    split: Split,
    recipes: Mapping[str, Recipe],
    streams: Mapping[str, int],
    device: torch.device,
    rounds: int = ROUNDS,
    group: Group = ALONE,
) -> dict[str, float]:
    """Median milliseconds of a training step of each network, on the same batches. Trains them a little.

    Which goes first rotates. The global random state is left as it was. With a `group`
    all its ranks call this alike and get the times of rank 0. Exceptions propagate.
    """
    names = list(models)
    times: dict[str, list[float]] = {name: [] for name in names}
    forget_compiled(recipes[names[0]])
    with _random_state_kept(device):
        runs = {
            name: _run(models[name], source, split, recipes[name], streams, device, group)
            for name in names
        }
        recipe, total = recipes[names[0]], WARM_UP + rounds
        batches = Batches(
            split.train, batch_size=recipe.batch_size, order=streams["order"], start=0, total=total,
            part=group.part,
        )  # fmt: skip
        for number, batch in enumerate(islice(source.pool_batches(batches, device), total)):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                times[name].append(_one_step(runs[name], *batch))
    found = {name: 1000 * median(values[WARM_UP:]) for name, values in times.items()}
    times_ms: dict[str, float] = group.first(lambda: found)
    return times_ms


def _run(
    model: nn.Module,
    source: Source,
    split: Split,
    recipe: Recipe,
    streams: Mapping[str, int],
    device: torch.device,
    group: Group,
) -> _Run:
    model.to(device=device, memory_format=memory_format(recipe))  # type: ignore[call-overload]
    model.train()
    return _Run(
        model=model, source=source, split=split, recipe=recipe, streams=streams, device=device,
        on_measure=lambda measure: None, slot=None, time_limit_s=None, checkpoint_s=0.0, rungs={},
        group=group,
    )  # fmt: skip


def _one_step(run: _Run, images: Tensor, labels: Tensor) -> float:
    """Seconds of one step, up to the loss being known."""
    began = time.perf_counter()
    run.one_step(images, labels).item()  # waits for the device
    run.step += 1
    return time.perf_counter() - began
