from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_tune.data.idx import NAMES, idx
from aim_tune.data.source import check_data
from aim_tune.errors import DataError
from aim_tune.spec.catalog import Catalog

IMAGES = np.arange(5 * 3 * 4, dtype=np.uint8).reshape(5, 3, 4)
LABELS = np.array([0, 1, 2, 1, 0], dtype=np.uint8)


def packed(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).write_bytes(packed(IMAGES if "images" in name else LABELS))
    return tmp_path


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_plain_and_gz_files_are_found_in_the_usual_places(
    tmp_path: Path, place: str, zipped: bool
) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        content = packed(IMAGES if "images" in name else LABELS)
        path = tmp_path / place / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    arrays = idx(root=tmp_path)
    assert (arrays.train_images[:, 0] == IMAGES).all()
    assert arrays.test_labels.tolist() == LABELS.tolist()
    assert arrays.classes == ("0", "1", "2")


def test_a_missing_file_is_named_with_where_to_put_it(small: Path) -> None:
    (small / NAMES[3]).unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte \(or .*gz\) missing in .*; put"):
        idx(root=small)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda b: b[:-7], "train-images-idx3-ubyte is cut short: its header promises 60 bytes"),
        (lambda b: b + b"x", "is too long"),
        (lambda b: b"<html>" + b, "is no idx file of 3 dimension"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], "is damaged: its header claims"),
    ],
)
def test_damaged_files_are_named_with_the_reason(
    small: Path, damage: Callable[[bytes], bytes], text: str
) -> None:
    path = small / NAMES[0]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=text):
        idx(root=small)


def test_a_cut_gz_file_is_named(small: Path) -> None:
    content = gzip.compress((small / NAMES[0]).read_bytes())
    (small / NAMES[0]).unlink()
    (small / f"{NAMES[0]}.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is damaged"):
        idx(root=small)


def test_labels_that_do_not_match_the_images_are_refused(
    small: Path, house: Catalog, component: Callable[..., Any]
) -> None:
    (small / NAMES[1]).write_bytes(packed(LABELS[:4]))
    with pytest.raises(DataError, match=r"train_labels: shape \(4,\); expected \[5\]"):
        check_data(component("mnist", root=str(small), val_images=1), house)


def test_two_sets_under_one_root_need_a_choice(small: Path) -> None:
    for name in ("A", "B"):
        (small / name / "raw").mkdir(parents=True)
        (small / name / "raw" / NAMES[0]).write_bytes(packed(IMAGES))
    for name in NAMES:
        (small / name).unlink()
    with pytest.raises(DataError, match=r"several idx sets under .*A/raw, .*B/raw"):
        idx(root=small)


def test_real_mnist_has_its_known_first_labels(
    real: Callable[[str], Path], house: Catalog, component: Callable[..., Any]
) -> None:
    root = real("MNIST")
    arrays = idx(root=root)
    assert arrays.train_labels[:6].tolist() == [5, 0, 4, 1, 9, 2]
    assert arrays.test_labels[:6].tolist() == [7, 2, 1, 0, 4, 1]
    info = check_data(component("mnist", root=str(root)), house)
    assert (info.pool, info.test, info.image_shape) == (60000, 10000, (1, 28, 28))
