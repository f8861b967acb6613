"""How a memory of rows x columns x channels is laid over a grid of features.

`aligned` (the default, depth to space): a memory cell covers a patch of the grid and its channels fill
the positions of that patch, so a number stays where it belongs. `raster`: the published reshape of
the row-major numbers, which scatters a cell over the grid. In both nothing is lost and nothing repeated:
what does not fill the last channel is zero. `constant` and `coordinates` are the layouts of control arms.
Legend: K memory channels, R rows, C columns, H x W grid, b channels read ("buckets").
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def buckets(
    memory_shape: tuple[int, int, int], height: int, width: int, layout: str = "aligned"
) -> int:
    """Channels that a memory (rows, columns, channels) takes on a grid of height x width.

    >>> buckets((4, 4, 16), 16, 16), buckets((4, 4, 16), 8, 8), buckets((4, 4, 16), 2, 2)
    (1, 4, 64)
    """
    rows, columns, channels = memory_shape
    if layout == "coordinates":
        return 2
    if layout == "raster":
        return math.ceil(rows * columns * channels / (height * width))
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


def raster(memory_BKRC: Tensor, height: int, width: int, channels: int) -> Tensor:
    """The published reshape, as a map [B, channels, height, width].

    The numbers in the order (row, column, channel) fill the positions of the grid row by row, b numbers
    per position. A memory whose smallest square is smaller than the grid lies as that square in the
    middle of zeros.
    """
    x = memory_BKRC.permute(0, 2, 3, 1).flatten(1)
    numbers = x.shape[1]
    side = math.isqrt(numbers - 1) + 1
    if height > side and width > side:
        x = _centered(x, side * side).view(-1, 1, side, side)
        down, right = height - side, width - side
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    else:
        taken = math.ceil(numbers / (height * width))
        x = F.pad(x, (0, taken * height * width - numbers))
        x = x.view(-1, height, width, taken).permute(0, 3, 1, 2)
    more = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x


def constant(memory_BKRC: Tensor, height: int, width: int, channels: int) -> Tensor:
    """The K numbers of a memory of one cell, repeated as often as it takes, the same at every position."""
    index = torch.arange(channels, device=memory_BKRC.device) % memory_BKRC.shape[1]
    return memory_BKRC[:, index].expand(-1, -1, height, width)


def coordinates(memory_BKRC: Tensor, height: int, width: int, channels: int) -> Tensor:
    """x and y from -1 to 1 instead of the memory, of which only device and type are taken."""
    device, dtype = memory_BKRC.device, memory_BKRC.dtype
    y = torch.linspace(-1, 1, height, device=device, dtype=dtype)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=device, dtype=dtype)[None].expand(height, width)
    return torch.stack([x, y])[None]


LAYOUTS: dict[str, Callable[[Tensor, int, int, int], Tensor]] = {
    "aligned": spread,
    "raster": raster,
    "constant": constant,
    "coordinates": coordinates,
}
"""Name -> f(memory, height, width, channels)."""


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


def _centered(x_BT: Tensor, length: int) -> Tensor:
    """x with zeros on both sides; an odd one goes behind."""
    more = length - x_BT.shape[1]
    return F.pad(x_BT, (more // 2, more - more // 2))


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
