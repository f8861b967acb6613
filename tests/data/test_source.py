from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from aim_tune.data import COMMON, DATASETS, sealed
from aim_tune.data.source import check_data, open_source
from aim_tune.errors import DataError
from aim_tune.spec.catalog import Catalog, Entry, Setting
from aim_tune.spec.study import Component

CPU = torch.device("cpu")
Make = Callable[..., Any]


def lab(*, shift: int = 0, seed: int = 0) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (50, 1, 4, 4), dtype=np.uint8)
    labels = (np.arange(50) + shift) % 5
    return images[:40], labels[:40], images[40:], labels[40:]


LAB = Catalog(
    backbones={},
    data={"lab": Entry(build=lab, doc="", settings={"shift": Setting(kind="int", default=0)})},
    addons={},
)


def test_a_plug_in_4_tuple_opens_with_default_split_sizes() -> None:
    info = check_data(Component(name="lab"), LAB)
    assert (info.pool, info.test, info.val, info.train) == (40, 10, 8, 32)
    assert (info.classes, info.image_shape) == (5, (1, 4, 4))


def test_settings_reach_the_plug_in_and_the_split_sizes_do_not() -> None:
    row = Component(name="lab", settings={"shift": 2, "train_images": 10, "val_images": 5})
    assert sealed.test_labels(row, LAB)[:3].tolist() == [2, 3, 4]
    split = open_source(row, LAB).split(0)
    assert (len(split.train), len(split.val)) == (10, 5)


def test_splits_are_disjoint_fixed_by_seed_and_differ_between_seeds() -> None:
    source = open_source(Component(name="lab"), LAB)
    split, again, other = source.split(1), source.split(1), source.split(2)
    assert not set(split.train.tolist()) & set(split.val.tolist())
    assert torch.equal(split.train, again.train)
    assert set(split.val.tolist()) != set(other.val.tolist())


def test_batches_hold_the_asked_images_normalized_over_the_pool() -> None:
    source = open_source(Component(name="lab"), LAB)
    raw_images, raw_labels, _, _ = lab()
    (images, labels), (few, _) = source.pool_batches([torch.arange(40), torch.tensor([7, 3])], CPU)
    assert images.dtype == torch.float32
    assert images.mean().item() == pytest.approx(0, abs=1e-5)
    assert images.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert labels.tolist() == raw_labels.tolist()
    assert torch.equal(few, images[[7, 3]])
    x = raw_images / 255.0
    assert np.allclose(images.numpy(), (x - x.mean()) / x.std(), atol=1e-5)


def test_no_object_reachable_from_a_source_holds_the_test_labels() -> None:
    source = open_source(Component(name="lab"), LAB)
    sealed_labels = lab()[3].tolist()
    held = [v for v in vars(source).values() if isinstance(v, torch.Tensor | np.ndarray)]
    assert all(list(np.asarray(v).ravel()) != sealed_labels for v in held)
    assert sum(len(b) for b in source.test_batches(3, CPU)) == 10


def test_a_source_is_opened_once_per_process_and_settings() -> None:
    one = open_source(Component(name="lab", settings={"shift": 1}), LAB)
    assert open_source(Component(name="lab", settings={"shift": 1}), LAB) is one
    assert open_source(Component(name="lab", settings={"shift": 3}), LAB) is not one


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"train_images": 33}, "train_images 33 .* val_images 8 do not fit the 40 images"),
        ({"val_images": 40}, "together at most 40"),
    ],
)
def test_splits_larger_than_the_pool_are_refused(settings: dict[str, int], text: str) -> None:
    with pytest.raises(DataError, match=text):
        check_data(Component(name="lab", settings=settings), LAB)


def test_an_unknown_data_set_names_the_nearest(house: Catalog) -> None:
    with pytest.raises(DataError, match="unknown data set 'digit'; did you mean 'digits'"):
        check_data(Component(name="digit"), house)


def test_digits_are_what_the_method_describes(house: Catalog, component: Make) -> None:
    info = check_data(component("digits", train_images=200), house)
    assert (info.train, info.val, info.test, info.pool) == (200, 300, 797, 1000)
    assert info.image_shape == (3, 16, 16)


def test_every_row_has_the_common_settings_and_takes_its_own(house: Catalog) -> None:
    for name, entry in DATASETS.items():
        assert set(COMMON) <= set(entry.settings), name
        assert callable(entry.load())


def test_the_table_imports_no_torch() -> None:
    code = "import sys, aim_tune.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_pixels_undo_the_normalization_and_the_preparation_does_it_again(kind: str) -> None:
    def plain() -> tuple[np.ndarray, ...]:
        images = np.random.default_rng(0).integers(0, 256, (40, 3, 4, 4)).astype(kind)
        return images[:30], np.arange(30) % 3, images[30:], np.arange(10) % 3

    catalog = Catalog(backbones={}, data={kind: Entry(build=plain, doc="")}, addons={})
    source = open_source(Component(name=kind), catalog)
    (images,) = source.test_batches(10, torch.device("cpu"))
    pixels = source.pixels(images)
    raw = torch.from_numpy(plain()[2]).float()
    assert torch.equal(pixels, raw) if kind == "uint8" else torch.allclose(pixels, raw, atol=1e-3)
    made = source.preparation
    assert (made.black, made.white) == ((0.0, 255.0) if kind == "uint8" else (0.0, 1.0))
    scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in (made.scale, made.shift))
    assert torch.equal(raw * scale + shift, images)  # bit for bit
