"""A data set as a list of image files: decoding, checking and identity. Holds paths, not pixels.

Every image becomes uint8 RGB: the shorter side is resized to `image_size`, the middle square is kept.
The same function decodes once into memory or again and again while streaming: same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from aim_tune.data.arrays import Arrays
from aim_tune.errors import DataError

MEAN = (0.485, 0.456, 0.406)  # of photographs, as in ImageNet recipes: no pass over the files
SD = (0.229, 0.224, 0.225)
HASH_CONTENTS_UP_TO = 2**30  # bytes; larger sets are identified by names and sizes
MIB = 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class Files:
    """Image files with labels."""

    root: Path
    train: tuple[str, ...]
    """Keys: paths relative to root, with /; splits go by them."""
    train_labels: np.ndarray
    """[N] int64."""
    test: tuple[str, ...]
    test_labels: np.ndarray
    """[N] int64; sealed."""
    classes: tuple[str, ...]
    image_size: int
    in_memory_mib: int
    workers: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return (3, self.image_size, self.image_size)

    @property
    def fits_memory(self) -> bool:
        """Whether the decoded images take no more than `in_memory_mib`."""
        images = len(self.train) + len(self.test)
        return images * 3 * self.image_size**2 <= self.in_memory_mib * MIB

    @cached_property
    def digest(self) -> str:
        """16 hex digits over every name, label and content (very large sets: size)."""
        keys = [*self.train, *self.test]
        sizes = [(self.root / key).stat().st_size for key in keys]
        whole = sum(sizes) <= HASH_CONTENTS_UP_TO
        sha = hashlib.sha256(f"{len(self.train)} {self.classes} {self.image_size}".encode())
        labels = [*self.train_labels.tolist(), *self.test_labels.tolist()]
        for key, label, size in zip(keys, labels, sizes, strict=True):
            content = hashlib.sha256((self.root / key).read_bytes()).hexdigest() if whole else ""
            sha.update(f"{key}\0{label}\0{size}\0{content}\n".encode(errors="surrogateescape"))
        return sha.hexdigest()[:16]

    def decoded(self) -> Arrays:
        """Everything in memory; raises DataError naming the files that cannot be read."""
        read = partial(decode_all, self.root, image_size=self.image_size, workers=self.workers)
        return Arrays(
            train_images=read(self.train),
            train_labels=self.train_labels,
            test_images=read(self.test),
            test_labels=self.test_labels,
            classes=self.classes,
            mean=MEAN,
            sd=SD,
            keys=self.train,
            digest=self.digest,
        )


def decode(path: Path, image_size: int) -> np.ndarray:
    """uint8 [3, size, size]; raises DataError naming the file if it cannot be read to its end."""
    return decode_rectangle(path, (3, image_size, image_size))


def decode_rectangle(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 [C, H, W], grey where C is 1; raises DataError naming the file, as `decode` does.

    Other than square shapes get the middle square squeezed.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"{path}: an image file has 1 or 3 channels, {channels} are wanted")
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise DataError(f"{path}: {error}") from error
    if image.size != (width, height):
        image = middle_square(image, max(height, width)).resize((width, height))
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """The middle of the image after its shorter side was resized to `size` (bilinear)."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode_all(root: Path, keys: Sequence[str], *, image_size: int, workers: int = 1) -> np.ndarray:
    """uint8 [N, 3, size, size], in the order of the keys; all unreadable files in one DataError."""
    images = np.empty((len(keys), 3, image_size, image_size), dtype=np.uint8)

    def read(number: int) -> str | None:
        try:
            images[number] = decode(root / keys[number], image_size)
        except DataError as error:
            return str(error)
        return None

    if workers == 1:
        faults = [fault for number in range(len(keys)) if (fault := read(number))]
    else:
        with ThreadPoolExecutor(workers) as pool:
            faults = [fault for fault in pool.map(read, range(len(keys))) if fault]
    raise_faults(faults)
    return images


def check_files(paths: Sequence[Path], *, workers: int) -> None:
    """Look at both ends of every file; raises DataError naming those that are cut or no images."""
    with ThreadPoolExecutor(workers) as pool:
        raise_faults([text for text in pool.map(fault, paths) if text])


def fault(path: Path) -> str | None:
    """What is wrong with an image file, judged by its header and its last bytes."""
    try:
        with Image.open(path) as opened:
            kind = opened.format
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 1024))
            tail = stream.read()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        return f"{path}: {error}"
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
    if kind in ends and ends[kind] not in tail:
        return f"{path}: the {kind} ends early"
    return None


def raise_faults(faults: Sequence[str], shown: int = 5) -> None:
    """One DataError for all unreadable files; nothing if there are none."""
    if faults:
        more = f"\n  and {len(faults) - shown} more" if len(faults) > shown else ""
        listed = "\n  ".join(faults[:shown])
        raise DataError(
            f"{len(faults)} image file(s) cannot be read; replace or remove them:\n  {listed}{more}"
        )
