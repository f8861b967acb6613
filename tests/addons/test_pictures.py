"""The record of a memory's pictures: what is kept, how it is drawn, that a damaged one is refused."""

from __future__ import annotations

import json
import math
import struct
import zlib

import numpy as np
import pytest

from aim_tune.addons.pictures import (
    HIGH,
    LOW,
    MIDDLE,
    MOST_BYTES,
    MemoryPictures,
    colored,
    memory_images,
    mosaic,
    png,
)


def maps(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_record_comes_back_as_it_was_up_to_half_precision() -> None:
    made = MemoryPictures.of(
        maps(5, 4, 4), maps(5, 4, 4, seed=1), maps(3, 5, 4, 4), labels=[7, 0, 7]
    )
    back = MemoryPictures.from_dict(json.loads(json.dumps(made.to_dict())))
    assert (back.channels, back.total, back.labels) == (made.channels, 5, (7, 0, 7))
    for name in ("start", "end", "written"):
        np.testing.assert_allclose(getattr(back, name), getattr(made, name), rtol=1e-3)


def test_the_channels_that_moved_most_are_kept_and_named() -> None:
    start = np.zeros((20, 2, 2), np.float32)
    end = start + np.arange(20, dtype=np.float32)[:, None, None]
    made = MemoryPictures.of(start, end, np.zeros((0, 20, 2, 2), np.float32))
    assert made.channels == tuple(range(19, 3, -1))
    assert made.total == 20
    assert made.end[0].tolist() == [[19, 19], [19, 19]]


@pytest.mark.parametrize("shape", [(1024, 7, 7), (1, 200, 333), (64, 31, 31), (4096, 1, 1)])
def test_no_memory_makes_a_record_too_large(shape: tuple[int, int, int]) -> None:
    made = MemoryPictures.of(maps(*shape), maps(*shape, seed=1), maps(4, *shape, seed=2))
    assert len(json.dumps(made.to_dict())) < MOST_BYTES * 4 / 3 + 1000
    assert made.start.shape[0] >= 1


def test_a_large_map_is_averaged() -> None:
    start = np.arange(64 * 96, dtype=np.float32).reshape(1, 64, 96)
    made = MemoryPictures.of(start, start + 1, np.zeros((0, 1, 64, 96), np.float32))
    assert made.start.shape == (1, 32, 32)
    assert made.start[0, 0, 0] == start[0, :2, :3].mean()


def test_a_vector_is_laid_out_as_a_square() -> None:
    start = np.arange(1, 8, dtype=np.float32).reshape(7, 1, 1)
    made = MemoryPictures.of(start, start, start[None])
    assert made.start.tolist() == [[[1, 2, 3], [4, 5, 6], [7, 0, 0]]]


def test_the_figures_are_those_of_the_definition() -> None:
    start, end = np.full((2, 2, 2), 3.0, np.float32), np.full((2, 2, 2), -1.0, np.float32)
    written = np.stack([start, end])  # all of the spread lies between the two images
    figures = MemoryPictures.of(start, end, written).figures()
    assert figures == {"start": 3.0, "change": 4.0, "between_images": 1.0}
    alone = MemoryPictures.of(start, end, written[:1])
    assert math.isnan(alone.figures()["between_images"])


def test_colors_are_those_of_sign_and_size() -> None:
    drawn = colored(np.array([-2.0, -1.0, 0.0, 1.0, 5.0], np.float32), 1.0)
    assert drawn.tolist() == [list(c) for c in (LOW, LOW, MIDDLE, HIGH, HIGH)]


def test_a_mosaic_lays_channels_side_by_side() -> None:
    three = np.stack([np.full((2, 2), v, np.float32) for v in (-1, 0, 1)])
    image = mosaic(three, 1.0, columns=2, cell=4)
    assert image.shape == (2 * 8 + 2, 2 * 8 + 2, 3)
    assert image[0, 0].tolist() == list(LOW)
    assert image[0, -1].tolist() == list(MIDDLE)
    assert image[-1, 0].tolist() == list(HIGH)
    assert image[-1, -1].tolist() == [255, 255, 255]  # no fourth channel


def test_images_are_named_by_what_they_show() -> None:
    made = MemoryPictures.of(maps(5, 4, 4), maps(5, 4, 4, seed=1), maps(2, 5, 4, 4))
    images = memory_images(made.to_dict())
    assert list(images) == ["start", "end", "written/0", "written/1"]
    assert all(i.dtype == np.uint8 and i.shape[2] == 3 for i in images.values())
    assert not np.array_equal(images["start"], images["end"])


def test_a_diverged_memory_is_drawn_too() -> None:
    broken = maps(2, 2, 2)
    broken[0, 0, 0], broken[1, 0, 0] = np.nan, np.inf
    record = MemoryPictures.of(maps(2, 2, 2), broken, broken[None]).to_dict()
    assert set(memory_images(record)) == {"start", "end", "written/0"}


def test_png_is_a_valid_file() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = png(image)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (4, 2)
    length = struct.unpack(">I", data[33:37])[0]
    raw = zlib.decompress(data[41 : 41 + length])
    assert raw == b"\0" + image[0].tobytes() + b"\0" + image[1].tobytes()


@pytest.mark.parametrize("shape", [[9, 5, 4, 4], [2, 5, 4], [1, 5, 4, 4], [40, 5, 400, 400]])
def test_a_record_that_does_not_fit_its_shape_is_refused(shape: list[int]) -> None:
    record = MemoryPictures.of(maps(5, 4, 4), maps(5, 4, 4), maps(1, 5, 4, 4)).to_dict()
    with pytest.raises(ValueError, match="the memory's pictures have"):
        MemoryPictures.from_dict({**record, "shape": shape})
