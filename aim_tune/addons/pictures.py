"""What a memory learned, as small arrays that fit into a training's record, and as images of them.

Kept are the memory before training, after it, and what the last update block wrote for a few validation
images. Of many channels those that moved most are kept, as float16; a record stays below MOST_BYTES. Needs
numpy only: the report and MLflow draw from the record. `memory/pictures.py` takes the pictures.
Legend: k channels kept, R rows, C columns, n images.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_CHANNELS = 16
MOST_BYTES = 48 * 1024
"""Of all arrays together; a third more as text."""
MOST_SIDE = 32
"""Rows and columns of a picture; larger ones are averaged."""
IMAGES = 4
"""Validation images for which the written memory is kept."""
LOW, MIDDLE, HIGH = (0, 103, 177), (246, 247, 249), (194, 87, 12)
"""Colors of negative, zero and positive numbers; they differ in light for color-blind eyes as well."""
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class MemoryPictures:
    """Pictures of one memory. A dense network's vector is laid out as a square, filled up with zeros."""

    start: Array
    """[k, R, C], before the training."""
    end: Array
    """[k, R, C], after it."""
    written: Array
    """[n, k, R, C]: after the last update, one per validation image; [1, ...] where all images share it;
    [0, ...] where nothing is rewritten."""
    channels: tuple[int, ...]
    """Which channels these are, the one that moved most first."""
    total: int
    """Channels that the memory has."""
    labels: tuple[int, ...] = ()
    """Class of each image in `written`."""

    @classmethod
    def of(
        cls, start: Array, end: Array, written: Array, *, labels: Sequence[int] = ()
    ) -> MemoryPictures:
        """From whole memories [K, R, C] and [n, K, R, C]."""
        start, end, written = (_square(_smaller(x)) for x in (start, end, written))
        most = MOST_BYTES // (2 * (2 + len(written)) * start.shape[1] * start.shape[2])
        moved = np.abs(end - start).sum((1, 2))
        order = np.argsort(-moved, kind="stable")[: max(1, min(MOST_CHANNELS, most))]
        shared = len(written) < 2
        return cls(
            start=start[order],
            end=end[order],
            written=written[:, order],
            channels=tuple(int(i) for i in order),
            total=len(start),
            labels=() if shared else tuple(labels),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; numbers as float16."""
        maps = np.concatenate([self.start[None], self.end[None], self.written])
        raw = np.clip(maps, -65504, 65504).astype("<f2").tobytes()
        return {
            "maps": base64.b64encode(zlib.compress(raw, 9)).decode("ascii"),
            "shape": list(maps.shape),
            "channels": list(self.channels),
            "total": self.total,
            "labels": list(self.labels),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> MemoryPictures:
        """Inverse of `to_dict`, up to float16. Raises ValueError for a record that does not fit."""
        shape = tuple(int(n) for n in value["shape"])
        raw = zlib.decompressobj().decompress(base64.b64decode(value["maps"]), 2 * MOST_BYTES)
        if len(raw) != 2 * math.prod(shape) or len(shape) != 4 or shape[0] < 2:
            raise ValueError(f"the memory's pictures have {len(raw)} bytes for the shape {shape}")
        maps = np.frombuffer(raw, dtype="<f2").reshape(shape).astype(np.float32)
        return cls(
            start=maps[0],
            end=maps[1],
            written=maps[2:],
            channels=tuple(value["channels"]),
            total=value["total"],
            labels=tuple(value["labels"]),
        )

    def figures(self) -> dict[str, float]:
        """What the pictures show, in figures: root mean square of the memory at the start and of its
        change (over the channels kept), and the share of the written memory's spread that lies between
        images (nan with fewer than two)."""
        between = math.nan
        if len(self.written) > 1 and self.written.var() > 0:
            between = float(self.written.var(axis=0).mean() / self.written.var())
        return {
            "start": float(np.sqrt((self.start**2).mean())),
            "change": float(np.sqrt(((self.end - self.start) ** 2).mean())),
            "between_images": between,
        }


def memory_images(record: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
    """Name -> image [height, width, 3] of a training's `result.memory`: the channels side by side.

    Names: start, end, written/0... One scale for start and end, one for all that was written.
    """
    shown = MemoryPictures.from_dict(record)
    learned = limit_of(shown.start, shown.end)
    images = {
        "start": mosaic(shown.start, learned, columns=4),
        "end": mosaic(shown.end, learned, columns=4),
    }
    for i, maps in enumerate(shown.written):
        images[f"written/{i}"] = mosaic(maps, limit_of(shown.written), columns=4)
    return images


def limit_of(*maps: Array) -> float:
    """The number drawn in full color, such that few (1 %) are beyond it."""
    sizes = np.abs(np.concatenate([m.reshape(-1) for m in maps]))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.quantile(sizes, 0.99)) or 1.0 if len(sizes) else 1.0


def mosaic(maps: Array, limit: float, *, columns: int, cell: int = 8) -> NDArray[np.uint8]:
    """Channels [k, R, C] as one image, `columns` side by side; every number a square of `cell` pixels."""
    k, rows, cols = maps.shape
    lines, gap = math.ceil(k / columns), max(2, cell // 2)
    height, width = rows * cell + gap, cols * cell + gap
    image = np.full((lines * height - gap, min(columns, k) * width - gap, 3), 255, dtype=np.uint8)
    for i, one in enumerate(maps):
        y, x = (i // columns) * height, (i % columns) * width
        tile = colored(one, limit).repeat(cell, 0).repeat(cell, 1)
        image[y : y + rows * cell, x : x + cols * cell] = tile
    return image


def colored(values: Array, limit: float) -> NDArray[np.uint8]:
    """Numbers [...] as colors [..., 3]: LOW at -limit, MIDDLE at 0, HIGH at limit."""
    share = np.clip(np.nan_to_num(values) / limit, -1, 1)[..., None]
    ends = np.where(share < 0, np.array(LOW), np.array(HIGH))
    return np.round(np.array(MIDDLE) + np.abs(share) * (ends - np.array(MIDDLE))).astype(np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    """An image [height, width, 3] as a PNG file."""
    height, width, _ = image.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _smaller(maps: Array) -> Array:
    """Neighbors averaged until no side is larger than MOST_SIDE."""
    rows, cols = maps.shape[-2:]
    r, c = math.ceil(rows / MOST_SIDE), math.ceil(cols / MOST_SIDE)
    if r == c == 1:
        return maps
    maps = np.add.reduceat(maps, np.arange(0, rows, r), axis=-2)
    maps = np.add.reduceat(maps, np.arange(0, cols, c), axis=-1)
    down = np.diff(np.append(np.arange(0, rows, r), rows))[:, None]
    return maps / (down * np.diff(np.append(np.arange(0, cols, c), cols)))


def _square(maps: Array) -> Array:
    """Vectors [..., K, 1, 1] as squares [..., 1, s, s]; other memories as they are."""
    *lead, channels, rows, cols = maps.shape
    if (rows, cols) != (1, 1) or channels == 1:
        return maps
    side = math.isqrt(channels - 1) + 1
    whole = np.zeros((*lead, side * side), dtype=maps.dtype)
    whole[..., :channels] = maps[..., 0, 0]
    return _smaller(whole.reshape(*lead, 1, side, side))
