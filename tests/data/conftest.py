"""What the data tests share: the house catalog, the folder with real images, small image folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aim_tune.data import DATASETS
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component

REPO_ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AIM_TUNE_SHARED_DATA", REPO_ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def house() -> Catalog:
    return Catalog(backbones={}, data=DATASETS, addons={})


@pytest.fixture
def component() -> Callable[..., Component]:
    def make(name: str, **settings: object) -> Component:
        return Component(name=name, settings={**DATASETS[name].defaults(), **settings})

    return make


@pytest.fixture
def real(tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of one real data set, or a skip."""

    def copy(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"real images absent: no {name} in {SHARED} (set AIM_TUNE_SHARED_DATA)")
        if name.endswith(".zip"):
            shutil.unpack_archive(SHARED / name, tmp_path)
        else:
            shutil.copytree(SHARED / name, tmp_path / name, copy_function=shutil.copyfile)
            for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
        return tmp_path

    return copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ and test/ with classes cat and dog: 6 and 3 images of 12 x 10 pixels, one of them grey."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                if number == 0:
                    image = image.convert("L")
                image.save(tmp_path / split / name / f"{number}.png")
    return tmp_path
