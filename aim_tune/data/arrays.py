"""A data set as four numpy arrays, checked once; what most builders and plug-ins return.

Knows shapes, label ranges, the digest and how examples are named (`keys`); draws no split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aim_tune.errors import DataError

CHUNK = 1000  # images that are turned into float64 at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """Images and labels in memory. N images, C channels, H x W pixels."""

    train_images: np.ndarray
    """[N, C, H, W] uint8 (0..255) or float32; what splits are drawn from."""
    train_labels: np.ndarray
    """[N] int64."""
    test_images: np.ndarray
    """Same shape and type as the training images, but for N."""
    test_labels: np.ndarray
    """[N] int64; sealed."""
    classes: tuple[str, ...]
    """Names in label order."""
    mean: tuple[float, ...] | None = None
    """Per channel, of values in 0..1 for uint8; None: measured on the training images."""
    sd: tuple[float, ...] | None = None
    black_white: tuple[float, float] = (0.0, 1.0)
    """Of float images: the values that stand for black and white; uint8 has 0 and 255."""
    keys: tuple[str, ...] | None = None
    """Stable name of each training image; None: its position."""
    digest: str | None = None
    """None: over all images and labels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        c, h, w = self.train_images.shape[1:]
        return (c, h, w)


def wrap(value: Any, source: str) -> Arrays:
    """Checked arrays from what a builder returned: `Arrays` or a 4-tuple.

    Raises DataError, naming `source`, for anything that could not be trained on.
    """
    if isinstance(value, Arrays):
        return checked(value, source)
    if not (isinstance(value, Sequence) and len(value) == 4):
        raise DataError(
            f"{source}: returned {type(value).__name__}; return data.Arrays or a 4-tuple "
            "(train_images [N, C, H, W], train_labels [N], test_images, test_labels)"
        )
    train_images, train_labels, test_images, test_labels = map(np.asarray, value)
    highest = int(train_labels.max()) if train_labels.size else -1
    arrays = Arrays(
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=tuple(str(k) for k in range(highest + 1)),
    )
    return checked(arrays, source)


def checked(arrays: Arrays, source: str) -> Arrays:
    """The same arrays in their canonical types, or DataError."""
    images = {
        "train": _images(arrays.train_images, f"{source}: train_images"),
        "test": _images(arrays.test_images, f"{source}: test_images"),
    }
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise DataError(
            f"{source}: training images are {images['train'].shape[1:]}, test images "
            f"{images['test'].shape[1:]}; both must have the same channels, height and width"
        )
    if images["train"].dtype != images["test"].dtype:
        raise DataError(
            f"{source}: training images are {images['train'].dtype}, test images "
            f"{images['test'].dtype}; give both as uint8 or both as float32"
        )
    labels = {
        "train": _labels(arrays.train_labels, images["train"], arrays, f"{source}: train_labels"),
        "test": _labels(arrays.test_labels, images["test"], arrays, f"{source}: test_labels"),
    }
    absent = set(range(len(arrays.classes))) - set(labels["train"].tolist())
    if absent:
        raise DataError(
            f"{source}: class {arrays.classes[min(absent)]!r} has no training image; "
            "remove the class or add images"
        )
    return replace(
        arrays,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
    )


def _images(value: Any, where: str) -> np.ndarray:
    images = np.asarray(value)
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"{where}: shape {images.shape}; expected [N, channels, height, width]")
    if images.dtype == np.uint8:
        return np.require(images, requirements=["C", "W"])
    if not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{where}: type {images.dtype}; expected uint8 (0..255) or float32")
    bad = ~np.isfinite(images).all(axis=(1, 2, 3))
    if bad.any():
        raise DataError(
            f"{where}: image {int(np.argmax(bad))} holds NaN or inf ({int(bad.sum())} such images); "
            "repair or remove them"
        )
    return np.require(images, dtype=np.float32, requirements=["C", "W"])


def _labels(value: Any, images: np.ndarray, arrays: Arrays, where: str) -> np.ndarray:
    labels = np.asarray(value)
    if labels.shape != (len(images),):
        raise DataError(f"{where}: shape {labels.shape}; expected [{len(images)}], one per image")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: type {labels.dtype}; expected whole numbers from 0")
    bad = (labels < 0) | (labels >= len(arrays.classes))
    if bad.any():
        raise DataError(
            f"{where}: label {int(labels[bad][0])} of image {int(np.argmax(bad))} is outside "
            f"0..{len(arrays.classes) - 1}"
        )
    return labels.astype(np.int64)


def moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel (uint8: of values in 0..1), to 6 decimals.

    Rounded so that machines that add in another order agree. A constant channel gets sd 1.
    """
    total = np.zeros(images.shape[1])
    squares = np.zeros(images.shape[1])
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK].astype(np.float64)
        total += part.sum(axis=(0, 2, 3))
        squares += np.square(part).sum(axis=(0, 2, 3))
    count = len(images) * images.shape[2] * images.shape[3]
    unit = 255.0 if images.dtype == np.uint8 else 1.0
    mean = total / count
    sd = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    sd = np.where(sd / unit > 1e-6, sd / unit, 1.0)
    return tuple(np.round(mean / unit, 6).tolist()), tuple(np.round(sd, 6).tolist())


def digest(arrays: Arrays) -> str:
    """16 hex digits over every image, label and class name."""
    if arrays.digest is not None:
        return arrays.digest
    sha = hashlib.sha256("\n".join(arrays.classes).encode())
    for part in (
        arrays.train_images,
        arrays.train_labels,
        arrays.test_images,
        arrays.test_labels,
    ):
        sha.update(f"{part.dtype}{part.shape}".encode())
        sha.update(np.ascontiguousarray(part).data)
    return sha.hexdigest()[:16]
