"""A user's own images: train/<class>/* and test/<class>/*, listed in a fixed order.

Lists files only; `data.files` decodes them. A set without test/ gets a fixed share sealed as test,
by hash of the relative path and the data seed, so that adding files moves none of the others.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from aim_tune.data.files import Files
from aim_tune.data.splits import key_ids, ranking
from aim_tune.errors import DataError

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def image_folder(
    *,
    root: str | Path,
    image_size: int,
    in_memory_mib: int,
    workers: int,
    seed: int,
    test_share: float | None,
) -> Files:
    """The files of both splits with labels by sorted class name.

    Raises DataError naming the folder that is missing, empty or not the same in train and test.
    """
    root = Path(root)
    classes = _classes(root / "train")
    train = _list(root, "train", classes)
    if (root / "test").is_dir():
        if test_share is not None:
            raise DataError(
                f"data.test_share: {test_share} was given, but {root / 'test'} exists; remove one"
            )
        if (found := _classes(root / "test")) != classes:
            raise DataError(
                f"{root / 'test'} has the classes {', '.join(found)}; expected those of train: "
                f"{', '.join(classes)}"
            )
        test = _list(root, "test", classes)
    else:
        train, test = _carve(root, train, seed, test_share)
    return Files(
        root=root,
        train=tuple(key for key, _ in train),
        train_labels=np.array([label for _, label in train], dtype=np.int64),
        test=tuple(key for key, _ in test),
        test_labels=np.array([label for _, label in test], dtype=np.int64),
        classes=classes,
        image_size=image_size,
        in_memory_mib=in_memory_mib,
        workers=workers,
    )


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing; expected one folder per class in it, such as {folder / 'cat'}"
        )
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if len(classes) < 2:
        raise DataError(
            f"{folder} has {len(classes)} class folder(s); expected two or more, with images in each"
        )
    return tuple(classes)


def _list(root: Path, split: str, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """(key, label) of every image, sorted by key within each class."""
    rows = []
    for label, name in enumerate(classes):
        keys = sorted(_images(root, root / split / name))
        if not keys:
            raise DataError(
                f"{root / split / name} has no image; add some ({', '.join(sorted(ENDINGS))}) "
                "or remove the folder"
            )
        rows += [(key, label) for key in keys]
    return rows


def _images(root: Path, folder: Path) -> list[str]:
    found = []
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if Path(name).suffix.lower() in ENDINGS and not name.startswith("."):
                found.append((Path(where) / name).relative_to(root).as_posix())
    return found


def _carve(
    root: Path, rows: list[tuple[str, int]], seed: int, share: float | None
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    if share is None:
        raise DataError(
            f"{root / 'test'} is missing; put the test images there (test/<class>/*), or set "
            "data.test_share: 0.2 to seal a fifth of train"
        )
    order = ranking(key_ids([key for key, _ in rows]), seed, purpose="test")
    sealed = set(order[: max(1, round(share * len(rows)))].tolist())
    train = [row for number, row in enumerate(rows) if number not in sealed]
    test = [row for number, row in enumerate(rows) if number in sealed]
    if len({label for _, label in train}) < len({label for _, label in rows}):
        raise DataError(
            f"data.test_share: {share} leaves a class of {root / 'train'} without training images; "
            "lower it or add images"
        )
    return train, test
