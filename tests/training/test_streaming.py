from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from aim_tune.data import DATASETS
from aim_tune.data.source import FileSource, TensorSource, open_source
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component, Recipe
from aim_tune.training.loop import fit, predict_test, weights_sha256

CPU = torch.device("cpu")


def folder_of_stripes(root: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for label, name in enumerate(("across", "down")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                stripes = pixels if label else pixels.transpose(1, 0, 2)
                stripes[:, ::2] += 120
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def test_a_set_that_streams_trains_to_the_same_bits_as_one_in_memory(tmp_path: Path) -> None:
    folder_of_stripes(tmp_path)
    house = Catalog(backbones={}, data=DATASETS, addons={})
    recipe = Recipe(steps=30, batch_size=8, lr=0.01, augment=("flip", "crop"), evaluations=3)
    results = []
    for memory, workers in ((64, 1), (0, 1), (0, 4)):
        settings = {
            **DATASETS["image_folder"].defaults(), "root": str(tmp_path), "image_size": 8,
            "in_memory_mib": memory, "workers": workers,
        }  # fmt: skip
        source = open_source(Component(name="image_folder", settings=settings), house)
        assert isinstance(source, TensorSource if memory else FileSource)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        outcome = fit(
            model, source, split=source.split(0), recipe=recipe, device=CPU,
            streams={"order": 1, "augment": 2, "dropout": 3}, on_measure=lambda _: None,
        )  # fmt: skip
        predictions = predict_test(model, source, recipe=recipe, device=CPU).tolist()
        results.append((weights_sha256(model), outcome.val_accuracy, predictions))
    assert results[0] == results[1] == results[2]
