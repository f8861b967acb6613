"""Layers that read the memory: subclasses with the parameters of the layer they replace and `mem_weight`.

Reading is by linearity: conv([x, m]) = conv_x(x) + conv_m(m). Nothing is concatenated, and a memory
that the whole batch shares is convolved once, at batch size 1, and added by broadcasting.
Legend: B images, F feature channels, N tokens.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons.memory.bank import Cell, form_of
from aim_tune.addons.memory.layout import token_grid


class ReadConv2d(nn.Conv2d):
    """A Conv2d that also reads the memory, as if it were concatenated to its input."""

    mem_weight: nn.Parameter
    cell: Cell

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """conv(x) + conv of the memory laid over x."""
        out = super().forward(x_BFHW)
        height, width = x_BFHW.shape[2:]
        memory = self.cell.on_grid(height, width, self.mem_weight.shape[1], form_of(out))
        return out.add_(self._read(memory))

    def _read(self, memory_BFHW: Tensor) -> Tensor:
        """The memory's share of the output. A 1x1 convolution skips the positions it does not see first:
        less work, and oneDNN (torch 2.15 on a CPU) writes the gradients of one with a stride and fewer than
        eight channels_last input channels beyond their memory."""
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            down, right = self.stride
            return F.conv2d(memory_BFHW[..., ::down, ::right], self.mem_weight)
        return self._conv_forward(memory_BFHW, self.mem_weight, None)


class ReadLinear(nn.Linear):
    """A Linear that also reads the memory, as if it were concatenated to its input.

    Flat inputs [B, F] read all of it as one vector; tokens [B, N, F] and channels-last maps
    [B, H, W, F] read what lies at their position. A class token in front reads zeros.
    """

    mem_weight: nn.Parameter
    cell: Cell

    def forward(self, x: Tensor) -> Tensor:
        """linear(x) + linear of the memory at the positions of x."""
        out = super().forward(x)
        return out.add_(F.linear(self._memory_at(x), self.mem_weight))

    def _memory_at(self, x: Tensor) -> Tensor:
        channels = self.mem_weight.shape[1]
        if x.dim() == 2:
            return self.cell.current().flatten(1)
        if x.dim() == 3:
            front, height, width = token_grid(x.shape[1])
            tokens = self.cell.on_grid(height, width, channels).flatten(2).transpose(1, 2)
            return F.pad(tokens, (0, 0, front, 0)) if front else tokens
        return self.cell.on_grid(x.shape[1], x.shape[2], channels).permute(0, 2, 3, 1)


READERS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: ReadConv2d, nn.Linear: ReadLinear}
"""Layer -> the subclass that reads."""


def as_reader(layer: Any, *, cell: Cell, mem_weight: Tensor) -> None:
    """Turn a layer into its reading subclass, in place: same object, same parameters, one more."""
    layer.__class__ = READERS[type(layer)]
    layer.cell = cell
    layer.mem_weight = nn.Parameter(mem_weight)


def as_plain(layer: Any) -> None:
    """Inverse of `as_reader`."""
    layer.__class__ = next(plain for plain, reader in READERS.items() if type(layer) is reader)
    del layer.cell, layer.mem_weight
