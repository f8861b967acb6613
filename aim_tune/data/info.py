"""What is known of an opened data set, as plain numbers. Imports no torch; holds no images, no labels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataInfo:
    """Size, shape and identity of a data set."""

    name: str
    """Row of the table it came from."""
    classes: int
    """Number of classes."""
    class_names: tuple[str, ...]
    """In label order."""
    image_shape: tuple[int, int, int]
    """Channels, height, width of what a network sees."""
    pool: int
    """Examples that splits draw from."""
    test: int
    """Sealed test examples."""
    train: int
    """Training images of a split."""
    val: int
    """Validation images of a split."""
    digest: str
    """16 hex digits: equal where every image and label is equal (very large folders: every file name
    and size)."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How pixels become what a network sees: pixels x scale + shift, per channel."""

    scale: tuple[float, ...]
    shift: tuple[float, ...]
    black: float
    """Pixel value of black in this data set, such as 0."""
    white: float
    """Pixel value of white, such as 255."""
