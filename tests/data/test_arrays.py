from __future__ import annotations

import numpy as np
import pytest

from aim_tune.data.arrays import Arrays, digest, moments, wrap
from aim_tune.errors import DataError


def four(**changes: object) -> tuple[np.ndarray, ...]:
    parts = {
        "train_images": np.arange(4 * 3 * 2 * 2, dtype=np.uint8).reshape(4, 3, 2, 2),
        "train_labels": np.array([0, 1, 2, 1]),
        "test_images": np.zeros((2, 3, 2, 2), dtype=np.uint8),
        "test_labels": np.array([2, 0]),
    }
    parts.update(changes)  # type: ignore[arg-type]
    return tuple(parts.values())


def test_a_4_tuple_becomes_arrays_with_numbered_classes() -> None:
    arrays = wrap(four(), "mine")
    assert arrays.classes == ("0", "1", "2")
    assert arrays.image_shape == (3, 2, 2)
    assert arrays.train_labels.dtype == np.int64


def test_float64_images_become_float32_and_keep_their_values() -> None:
    images = np.linspace(0, 1, 48).reshape(4, 3, 2, 2)
    arrays = wrap(four(train_images=images, test_images=images[:2]), "mine")
    assert arrays.train_images.dtype == np.float32
    assert np.allclose(arrays.train_images, images)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_images": np.zeros((4, 2, 2))}, r"train_images: shape \(4, 2, 2\); expected \[N"),
        ({"train_images": np.zeros((4, 3, 2, 2), np.int32)}, "type int32; expected uint8"),
        ({"train_labels": np.array([0, 1, 2])}, r"train_labels: shape \(3,\); expected \[4\]"),
        ({"train_labels": np.array([0.0, 1.0, 2.0, 1.0])}, "whole numbers"),
        ({"train_labels": np.array([0, -1, 2, 1])}, r"label -1 of image 1 is outside 0..2"),
        ({"test_labels": np.array([2, 7])}, r"test_labels: label 7 of image 1 is outside 0..2"),
        ({"train_labels": np.array([0, 2, 2, 0])}, "class '1' has no training image"),
        ({"test_images": np.zeros((2, 1, 2, 2), np.uint8)}, "must have the same channels"),
        ({"test_images": np.zeros((2, 3, 2, 2), np.float32)}, "both as uint8 or both as float32"),
    ],
)
def test_faulty_arrays_are_refused_with_place_and_reason(
    changes: dict[str, np.ndarray], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        wrap(four(**changes), "mine")


def test_one_nan_pixel_is_refused_with_its_image() -> None:
    images = np.zeros((4, 3, 2, 2), np.float32)
    images[2, 0, 1, 1] = np.nan
    with pytest.raises(DataError, match="mine: train_images: image 2 holds NaN or inf"):
        wrap(four(train_images=images, test_images=images[:2]), "mine")


def test_a_builder_that_returns_something_else_is_told_what_to_return() -> None:
    with pytest.raises(DataError, match=r"returned dict; return data.Arrays or a 4-tuple"):
        wrap({}, "mine")


def test_moments_of_known_values() -> None:
    images = np.zeros((2, 2, 1, 2), np.uint8)
    images[:, 0] = [[[0, 255]], [[0, 255]]]  # mean 0.5, sd 0.5
    mean, sd = moments(images)  # channel 1 is constant: sd 1, so that nothing is divided by 0
    assert mean == (0.5, 0.0)
    assert sd == (0.5, 1.0)


def test_moments_equal_numpys_on_floats() -> None:
    images = np.random.default_rng(0).normal(3, 2, (2500, 1, 4, 4)).astype(np.float32)
    mean, sd = moments(images)
    assert mean[0] == pytest.approx(images.mean(dtype=np.float64), abs=1e-6)
    assert sd[0] == pytest.approx(images.std(dtype=np.float64), abs=1e-6)


def test_the_digest_sees_one_pixel_one_label_and_one_name() -> None:
    base = wrap(four(), "mine")
    assert digest(base) == digest(wrap(four(), "mine"))
    pixels = base.train_images.copy()
    pixels[0, 0, 0, 0] += 1
    changed = [
        wrap(four(train_images=pixels), "mine"),
        wrap(four(test_labels=np.array([2, 1])), "mine"),
        Arrays(**{**vars(base), "classes": ("0", "1", "two")}),
    ]
    assert len({digest(a) for a in [base, *changed]}) == 4
