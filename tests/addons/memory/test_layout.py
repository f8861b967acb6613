"""Known values of how memory is laid over a grid."""

from __future__ import annotations

import math

import pytest
import torch

from aim_tune.addons.memory.layout import buckets, raster, spread, token_grid


def numbered(rows: int, columns: int, channels: int) -> torch.Tensor:
    """A memory [1, K, R, C] of the numbers 1, 2, 3... in the order of (row, column, channel)."""
    count = torch.arange(1.0, rows * columns * channels + 1)
    return count.view(rows, columns, channels).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("shape", "grid", "expected"),
    [
        ((4, 4, 16), (16, 16), 1),  # 256 numbers on 256 positions
        ((4, 4, 16), (8, 8), 4),
        ((4, 4, 16), (2, 2), 64),
        ((4, 4, 16), (32, 32), 1),  # fewer numbers than positions
        ((7, 7, 1024), (7, 7), 1024),  # the published memory at the last stage
        ((7, 7, 1024), (112, 112), 4),
        ((2, 2, 5), (4, 4), 2),  # 5 numbers on patches of 4
        ((3, 3, 2), (2, 2), 8),  # 3 rows on 2: two cells share a position
        ((1, 1, 64), (1, 1), 64),
    ],
)
def test_buckets_have_the_known_number(
    shape: tuple[int, int, int], grid: tuple[int, int], expected: int
) -> None:
    assert buckets(shape, *grid) == expected
    assert buckets(shape, *grid) >= math.ceil(math.prod(shape) / math.prod(grid))


def test_channels_of_a_cell_fill_its_patch() -> None:
    out = spread(numbered(2, 2, 4), 4, 4, 1)[0, 0]
    assert out.tolist() == [[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]


def test_a_smaller_grid_stacks_neighboring_cells_into_channels() -> None:
    out = spread(numbered(2, 2, 1), 1, 1, 4)
    assert out.flatten().tolist() == [1, 2, 3, 4]


def test_positions_without_numbers_are_zero() -> None:
    out = spread(numbered(1, 1, 3), 2, 2, 1)[0, 0]
    assert out.tolist() == [[1, 2], [3, 0]]


def test_a_grid_that_does_not_divide_gets_zero_edges_on_both_sides() -> None:
    out = spread(numbered(1, 3, 1), 1, 5, 1)[0, 0]
    assert out.tolist() == [[0, 1, 2, 3, 0]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (4, 4, 16), (3, 1, 7)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (4, 4), (7, 7), (16, 9)])
def test_every_number_is_laid_out_exactly_once(
    shape: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    out = spread(numbered(*shape), *grid, buckets(shape, *grid))
    kept = out[out != 0].sort().values
    assert kept.tolist() == list(range(1, math.prod(shape) + 1))


def test_another_grid_than_planned_pads_or_cuts_channels() -> None:
    memory = numbered(2, 2, 4)
    assert spread(memory, 4, 4, 3)[0, 1:].abs().sum() == 0
    assert torch.equal(spread(memory, 2, 2, 3), memory[:, :3])


def test_a_class_token_has_no_place() -> None:
    assert token_grid(197) == (1, 14, 14)
    assert token_grid(49) == (0, 7, 7)
    assert token_grid(6) == (0, 6, 1)


@pytest.mark.parametrize(
    ("shape", "grid", "expected"),
    [
        ((7, 7, 1024), (112, 112), 4),
        ((7, 7, 1024), (14, 14), 256),
        ((7, 7, 1024), (224, 224), 1),
        ((2, 2, 5), (3, 3), 3),  # 20 numbers on 9 positions
        ((2, 2, 1), (8, 8), 1),
    ],
)
def test_raster_takes_as_few_channels_as_hold_all_numbers(
    shape: tuple[int, int, int], grid: tuple[int, int], expected: int
) -> None:
    assert buckets(shape, *grid, "raster") == expected


def test_raster_fills_positions_with_numbers_in_order() -> None:
    out = raster(numbered(2, 2, 2), 2, 2, 2)  # channels last it is the memory itself
    assert out[0].permute(1, 2, 0).flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    out = raster(numbered(2, 2, 2), 1, 4, 2)
    assert out[0, 0, 0].tolist() == [1, 3, 5, 7]
    assert out[0, 1, 0].tolist() == [2, 4, 6, 8]


def test_raster_puts_a_smaller_memory_in_the_middle_of_zeros() -> None:
    out = raster(numbered(1, 1, 4), 4, 4, 1)[0, 0]
    assert out.tolist() == [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (4, 4, 16), (3, 1, 7)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (4, 4), (7, 7), (16, 9)])
def test_raster_lays_out_every_number_exactly_once(
    shape: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    out = raster(numbered(*shape), *grid, buckets(shape, *grid, "raster"))
    assert out.shape[2:] == grid
    assert out[out != 0].sort().values.tolist() == list(range(1, math.prod(shape) + 1))
