"""What the training loop costs beyond the network: CPU seconds of a whole training, by part.

The quick start's training (ResNet-8 width 8, digits 16 px, batch 32, 300 steps, 10 validation passes)
in one thread, after one training that warms caches up. `pure` is forward, loss, backward and optimizer
on one fixed batch; `passes` are the validation passes alone; the rest is data, schedule, seeds, bookkeeping.

Then the same training (32 px, colour, flips and shifts) fed by a plain DataLoader over PIL images with
torchvision's transforms: images per second through the whole training, and through the feeding alone.

    python benchmarks/training_loop.py           about 60 s
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from aim_tune.data.source import Source, open_source
from aim_tune.spec.study import Component, Recipe
from aim_tune.tables import HOUSE
from aim_tune.training.batches import Batches, augment
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


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """What most training scripts do: an image at a time, as PIL, through torchvision's transforms."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.images = [Image.fromarray(p) for p in pixels]
        self.labels = generator.integers(0, 10, count).tolist()
        self.change = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.change(self.images[index]), self.labels[index]


def batches_of(loader: DataLoader[Any], count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        for batch in loader:
            if count == 0:
                return
            count -= 1
            yield batch


def by_loader(model: nn.Module, recipe: Recipe, images: int, *, train: bool) -> None:
    loader = DataLoader(Pictures(images), batch_size=recipe.batch_size, shuffle=True)
    optimizer = make_optimizer(model, recipe)
    for inputs, labels in batches_of(loader, recipe.steps or 0):
        if train:
            loss = F.cross_entropy(model(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()


def by_us(model: nn.Module, source: Source, recipe: Recipe, *, train: bool) -> None:
    split = source.split(0)
    if train:
        streams = {"order": 1, "augment": 2, "dropout": 3}
        fit(model, source, split=split, recipe=recipe, streams=streams, device=CPU,
            on_measure=lambda _: None)  # fmt: skip
        return
    batches = Batches(
        split.train, batch_size=recipe.batch_size, order=1, start=0, total=recipe.steps or 0
    )
    for step, (images, _) in enumerate(source.pool_batches(batches, CPU)):
        augment(images, recipe.augment, stream=2, step=step)


def small(name: str, source: Source) -> nn.Module:
    torch.manual_seed(0)
    entry, info = HOUSE.backbones[name], source.info
    settings = {**entry.defaults(), **({"width": 8} if name == "resnet8" else {}), **entry.fixed}
    return entry.load()(classes=info.classes, image_shape=info.image_shape, **settings)


def against_a_loader(rounds: int) -> None:
    """Images per second, ours and a DataLoader's, in turns; medians."""
    settings = {**HOUSE.data["digits"].defaults(), "train_images": 600, "val_images": 100,
                "image_size": 32, "channels": 3}  # fmt: skip
    source = open_source(Component(name="digits", settings=settings), HOUSE)
    recipe = Recipe(steps=100, lr=0.01, evaluations=1, augment=("flip", "crop"))
    for name in ("mlp", "resnet8"):
        row: dict[str, Any] = {"backbone": name}
        for what, train in (("training", True), ("feeding", False)):
            times: dict[str, list[float]] = {"us": [], "loader": []}
            for _ in range(rounds):
                for who, call in (
                    ("us", partial(by_us, small(name, source), source, recipe, train=train)),
                    ("loader", partial(by_loader, small(name, source), recipe, 600, train=train)),
                ):
                    times[who].append(cpu_seconds(call, 1))
            images = recipe.batch_size * (recipe.steps or 0)
            ours, theirs = (images / statistics.median(times[w]) for w in ("us", "loader"))
            row[what] = {"images_s": round(ours), "loader_images_s": round(theirs),
                         "ratio": round(ours / theirs, 2)}  # fmt: skip
        print(json.dumps({**row, "px": 32, "batch": recipe.batch_size, "n": rounds}))


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
    against_a_loader(rounds)
    print(json.dumps({"torch": torch.__version__, "device": device_name(CPU), "threads": 1}))


if __name__ == "__main__":
    main()
