"""What the training loop costs beyond the network: CPU seconds of a whole training, by part.

The quick start's training (ResNet-8 width 8, digits 16 px, batch 32, 300 steps, 10 validation passes)
in one thread, after one training that warms caches up. `pure` is forward, loss, backward and optimizer
on one fixed batch; `passes` are the validation passes alone; the rest is data, schedule, seeds, bookkeeping.

    python benchmarks/training_loop.py           about 20 s
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aim_tune.data.source import Source, open_source
from aim_tune.spec.study import Component, Recipe
from aim_tune.tables import HOUSE
from aim_tune.training.evaluate import memory_format, validate
from aim_tune.training.loop import fit, weights_sha256
from aim_tune.training.optimizers import make_optimizer
from aim_tune.twin import device_name

CPU = torch.device("cpu")


def network(source: Source) -> nn.Module:
    torch.manual_seed(0)
    build = HOUSE.backbones["resnet8"]
    info = source.info
    return build.load()(classes=info.classes, image_shape=info.image_shape, **build.fixed, width=8)


def whole(source: Source, recipe: Recipe) -> str:
    model = network(source)
    streams = {"order": 1, "augment": 2, "dropout": 3}
    fit(
        model, source, split=source.split(0), recipe=recipe, streams=streams, device=CPU,
        on_measure=lambda _: None,
    )  # fmt: skip
    return weights_sha256(model)


def pure(source: Source, recipe: Recipe) -> None:
    model = network(source).to(memory_format=memory_format(recipe))
    optimizer = make_optimizer(model, recipe)
    images, labels = next(source.pool_batches([torch.arange(recipe.batch_size)], CPU))
    images = images.contiguous(memory_format=memory_format(recipe))
    for _ in range(recipe.steps or 0):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def passes(source: Source, recipe: Recipe) -> None:
    model = network(source).to(memory_format=memory_format(recipe))
    for _ in range(recipe.evaluations):
        validate(model, source, source.split(0).val, recipe=recipe, device=CPU)


def cpu_seconds(call: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    settings = {**HOUSE.data["digits"].defaults(), "train_images": 200}
    source = open_source(Component(name="digits", settings=settings), HOUSE)
    for channels_last in (False, True):
        recipe = Recipe(steps=300, lr=0.01, channels_last=channels_last)
        first = whole(source, recipe)
        row = {
            part.__name__: round(cpu_seconds(partial(part, source, recipe), rounds), 3)
            for part in (whole, pure, passes)
        }
        row["pure_share"] = round(row["pure"] / row["whole"], 3)
        same = whole(source, recipe) == first
        print(json.dumps({"channels_last": channels_last, **row, "bit_stable": same, "n": rounds}))
    print(json.dumps({"torch": torch.__version__, "device": device_name(CPU), "threads": 1}))


if __name__ == "__main__":
    main()
