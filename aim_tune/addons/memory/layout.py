"""How a memory of rows x columns x channels is laid over a grid of features.

Choice: the aligned layout (depth to space). A memory cell covers a patch of the grid and its channels
fill the positions of that patch, so a number stays where it belongs; a raster reshape would scatter
it. Nothing is lost and nothing repeated: what does not fill the last channel is zero.
Legend: K memory channels, R rows, C columns, H x W grid, b channels read ("buckets").
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def buckets(memory_shape: tuple[int, int, int], height: int, width: int) -> int:
    """Channels that a memory (rows, columns, channels) takes on a grid of height x width.

    >>> buckets((4, 4, 16), 16, 16), buckets((4, 4, 16), 8, 8), buckets((4, 4, 16), 2, 2)
    (1, 4, 64)
    """
    rows, columns, channels = memory_shape
    fold = _fold(rows, height) * _fold(columns, width)
    patch = _patch(rows, height) * _patch(columns, width)
    return math.ceil(channels * fold / patch)


def spread(memory_BKRC: Tensor, height: int, width: int, channels: int) -> Tensor:
    """The memory as a map [B, channels, height, width].

    Where the grid is larger than the memory, the channels of a cell fill its patch row by row; where
    it is smaller, neighboring cells are stacked into channels. The grid's edges, the end of the last
    channel, and channels beyond `buckets` are zero; buckets beyond `channels` are cut off (only
    possible for another grid than the one `attach` saw).
    """
    x = _stack(memory_BKRC, height, width)
    x = _unfold(x, _patch(x.shape[2], height), _patch(x.shape[3], width))
    down, right = height - x.shape[2], width - x.shape[3]
    more = channels - x.shape[1]
    if down or right or more:
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2, 0, more))
    return x


def token_grid(tokens: int) -> tuple[int, int, int]:
    """(tokens in front that have no place, height, width) of a sequence of tokens.

    >>> token_grid(197), token_grid(64), token_grid(6)
    ((1, 14, 14), (0, 8, 8), (0, 6, 1))
    """
    for front in (0, 1):  # without or with a class token
        side = math.isqrt(tokens - front)
        if side * side == tokens - front and side > 0:
            return front, side, side
    return 0, tokens, 1


def _fold(cells: int, positions: int) -> int:
    """Memory cells that share one position along an axis."""
    return math.ceil(cells / positions)


def _patch(cells: int, positions: int) -> int:
    """Positions that one memory cell covers along an axis."""
    return max(1, positions // cells)


def _stack(x_BKRC: Tensor, height: int, width: int) -> Tensor:
    """Space to depth, where the memory has more rows or columns than the grid."""
    batch, channels, rows, columns = x_BKRC.shape
    r, c = _fold(rows, height), _fold(columns, width)
    if r == c == 1:
        return x_BKRC
    rows, columns = math.ceil(rows / r), math.ceil(columns / c)
    x = F.pad(x_BKRC, (0, columns * c - x_BKRC.shape[3], 0, rows * r - x_BKRC.shape[2]))
    x = x.reshape(batch, channels, rows, r, columns, c).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(batch, channels * r * c, rows, columns)


def _unfold(x_BKRC: Tensor, r: int, c: int) -> Tensor:
    """Depth to space: r x c channels of a cell become its patch."""
    batch, channels, rows, columns = x_BKRC.shape
    if r == c == 1:
        return x_BKRC
    kept = math.ceil(channels / (r * c))
    x = F.pad(x_BKRC, (0, 0, 0, 0, 0, kept * r * c - channels)) if channels % (r * c) else x_BKRC
    x = x.reshape(batch, kept, r, c, rows, columns).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, kept, rows * r, columns * c)
