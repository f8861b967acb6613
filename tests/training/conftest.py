"""What the training tests share: a small plug-in data set and one call that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aim_tune.data.source import Source, open_source
from aim_tune.ledger import Measure
from aim_tune.spec.catalog import Catalog, Entry
from aim_tune.spec.study import Component, Recipe
from aim_tune.training.checkpoints import CheckpointSlot, CheckpointStore
from aim_tune.training.loop import Outcome, fit

STREAMS = {"order": 11, "augment": 12, "dropout": 13}
CPU = torch.device("cpu")


def blobs() -> tuple[np.ndarray, ...]:
    """Three classes of 8 x 8 images that differ by their bright third, with noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    images = generator.normal(0, 1.5, (150, 1, 8, 8)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 2] += 1.0
    return images[:120], labels[:120], images[120:], labels[120:]


CATALOG = Catalog(backbones={}, data={"blobs": Entry(build=blobs, doc="")}, addons={})


def network(seed: int = 0) -> nn.Module:
    """Conv, batch norm, dropout, linear: everything that a resume must bring back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Dropout(0.2), nn.Flatten(), nn.Linear(256, 3),
        )  # fmt: skip


@dataclass
class Trained:
    model: nn.Module
    outcome: Outcome
    measures: list[Measure]

    def scores(self) -> list[tuple[int, float, float, float, float, float]]:
        """Everything in the measures but the time."""
        return [
            (m.step, m.epoch, m.train_loss, m.val_loss, m.val_accuracy, m.lr) for m in self.measures
        ]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def catalog() -> Catalog:
    return CATALOG


@pytest.fixture
def source() -> Source:
    return open_source(Component(name="blobs"), CATALOG)


@pytest.fixture
def train(source: Source) -> Callable[..., Trained]:
    def run(recipe: Recipe, *, model: nn.Module | None = None, **kwargs: Any) -> Trained:
        model = network() if model is None else model
        measures: list[Measure] = []
        options: dict[str, Any] = {
            "split": source.split(1), "streams": STREAMS, "device": CPU,
            "on_measure": measures.append, **kwargs,
        }  # fmt: skip
        outcome = fit(model, source, recipe=recipe, **options)
        return Trained(model, outcome, measures)

    return run


@pytest.fixture
def slot(tmp_path: Path) -> Callable[[int], CheckpointSlot]:
    store = CheckpointStore(tmp_path / "checkpoints")
    return lambda attempt: CheckpointSlot(
        store=store, position="block/0/twin/1", arm="aim", attempt=attempt
    )
