"""Blocks that rewrite the memory from features and the memory before.

They pool first (their convolutions run at the size of the memory) or, as published, last. Where the
memory has few positions, convolutions run as two matrix products: the same function, less overhead.
Legend: B images, K memory channels, R rows, C columns, P = R x C positions, F feature channels, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons.memory.bank import MOMENTUM, Cell
from aim_tune.addons.memory.layout import token_grid

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
"""Name in a study -> what update blocks use after batch norm."""

FEW = 9
"""Up to so many positions RowsConv2d is used: there it is faster (2x2 and 3x3: 0.6 to 0.9 of a block's time
with nn.Conv2d, on a CPU); at 4x4 it is faster in small batches only (docs/memory_cost.md)."""


class RowsConv2d(nn.Conv2d):
    """A convolution with zero padding of a map of few positions, as two matrix products.

    Input and result are rows [B x P, channels]. Each row is multiplied with the weights of all taps;
    `gather` [P, P x taps] then adds, for each position, what its neighbors have for it.
    """

    gather: Tensor

    def __init__(self, before: int, after: int, kernel_size: int, rows: int, columns: int) -> None:
        super().__init__(before, after, kernel_size, padding=kernel_size // 2, bias=False)
        positions = rows * columns
        single = torch.eye(positions).view(positions, 1, rows, columns)  # each position alone
        reached = F.unfold(single, kernel_size, padding=kernel_size // 2)  # [from, tap, to]
        gather = reached.permute(2, 0, 1).reshape(positions, -1)
        self.register_buffer("gather", gather, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [B x P, out_channels]."""
        weights = self.weight.permute(1, 2, 3, 0).reshape(self.in_channels, -1)
        taps = (x @ weights).view(-1, self.gather.shape[1], self.out_channels)
        return torch.bmm(self.gather.expand(taps.shape[0], -1, -1), taps).flatten(0, 1)


class UpdateBlock(nn.Module):
    """Features and memory -> new memory: pool to rows x columns, three convolutions, a 1x1 convolution.

    `layout` says how features come: map [B, F, H, W], map_last [B, H, W, F], tokens [B, N, F], flat
    [B, F]. With `shared` the new memory is the mean over the batch in training, and its running mean
    in evaluation, so that a result never depends on an image's company. With `residual` it is added to
    the memory, at first as zeros. With `shuffled` an image goes on with the memory that was written for
    its neighbor in the batch; in evaluation, for one image of the last training batch. `late_change`
    copies features that the network changes in place afterwards.
    """

    running: Tensor
    donor: Tensor

    def __init__(
        self,
        *,
        cell: Cell,
        features: int,
        memory_KRC: Tensor,
        width: int,
        kernel_size: int,
        activation: str,
        layout: str,
        shared: bool,
        late_change: bool,
        residual: bool = False,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.rows, self.columns = memory_KRC.shape
        self.cell = cell
        self.activation, self.layout = activation, layout
        self.shared, self.late_change = shared, late_change
        self.residual, self.shuffled = residual, shuffled
        self._make_convs(features, width, kernel_size)
        if residual:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)
        if shared:
            self.register_buffer("running", memory_KRC[None].clone())
        if shuffled:
            self.register_buffer("donor", memory_KRC[None].clone())

    def rewrite(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Hook after the module whose output is read: the rest of the pass sees the new memory."""
        self.cell.write(self(output, self.cell.current()))

    def forward(self, features: Tensor, memory_BKRC: Tensor) -> Tensor:
        """New memory [B, K, R, C]; [1, K, R, C] with `shared`, and with `shuffled` in evaluation."""
        if not self.training and (self.shared or self.shuffled):
            return self.running if self.shared else self.donor
        new = self._written(features, memory_BKRC)
        if self.residual:
            new = memory_BKRC + new
        if self.shared:
            self.running.lerp_(new.detach().to(self.running.dtype), MOMENTUM)
        if self.shuffled:
            self.donor.copy_(new[:1].detach())
            new = new.roll(1, 0)
        return new

    def _make_convs(self, features: int, width: int, kernel_size: int) -> None:
        self.as_rows = kernel_size == 1 or self.rows * self.columns <= FEW
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([features + self.channels, width, width, width]):
            self.convs.append(self._conv(before, after, kernel_size))
            self.norms.append((nn.BatchNorm1d if self.as_rows else nn.BatchNorm2d)(after))
        self.out = nn.Linear(width, self.channels)

    def _conv(self, before: int, after: int, kernel_size: int) -> nn.Module:
        """A convolution without bias (batch norm follows), with He's initialization."""
        conv: nn.Linear | nn.Conv2d
        if kernel_size == 1:
            conv = nn.Linear(before, after, bias=False)
        elif self.as_rows:
            conv = RowsConv2d(before, after, kernel_size, self.rows, self.columns)
        else:
            conv = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight)
        return conv

    def _written(self, features: Tensor, memory_BKRC: Tensor) -> Tensor:
        """What the convolutions make of features and memory."""
        pooled = self._pool(self._map_of(features))
        x_BKRC = torch.cat([pooled, memory_BKRC.expand(pooled.shape[0], -1, -1, -1)], 1)
        return self._read_out(self._transform(x_BKRC))

    def _read_out(self, x_BRCK: Tensor) -> Tensor:
        """The 1x1 convolution; with `shared`, after the mean over the batch, since it is linear."""
        if self.shared:
            x_BRCK = x_BRCK.mean(0, keepdim=True)
        return self.out(x_BRCK).permute(0, 3, 1, 2)

    def _transform(self, x_BKRC: Tensor) -> Tensor:
        """The three convolutions. Result: [B, R, C, width].

        Kernels of one position and memories of few run on rows of positions, faster on a CPU.
        """
        activation = ACTIVATIONS[self.activation]
        if self.as_rows:
            x = x_BKRC.permute(0, 2, 3, 1).flatten(0, 2)
        else:
            x = x_BKRC.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activation(norm(conv(x)))
        if self.as_rows:
            return x.view(-1, self.rows, self.columns, x.shape[1])
        return x.permute(0, 2, 3, 1)

    def _map_of(self, features: Tensor) -> Tensor:
        return self._as_map(features.clone() if self.late_change else features)

    def _pool(self, x: Tensor) -> Tensor:
        """Averages [B, F, R, C].

        Contiguous features are pooled as one image: the views keep the gradient of the averages, which
        is channels-last, from turning that of the features, which is large, into another form.
        """
        if x.is_contiguous():
            pooled = self._average(x.view(1, -1, *x.shape[2:]))
            return pooled.view(-1, x.shape[1], self.rows, self.columns)
        return self._average(x)

    def _average(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.rows or width % self.columns:
            return F.adaptive_avg_pool2d(x, (self.rows, self.columns))
        return F.avg_pool2d(
            x, (height // self.rows, width // self.columns)
        )  # deterministic on CUDA

    def _as_map(self, features: Tensor) -> Tensor:
        match self.layout:
            case "map_last":
                return features.permute(0, 3, 1, 2)
            case "tokens":
                front, height, width = token_grid(features.shape[1])
                return features[:, front:].transpose(1, 2).unflatten(2, (height, width))
            case "flat":
                return features[:, :, None, None]
        return features


class PublishedUpdateBlock(UpdateBlock):
    """The published order: three convolutions of width, width, 2 width at the resolution of the features
    (with biases; memory is read by the first, as if concatenated), then the average, then the 1x1.
    """

    def __init__(self, *, buckets: int, **settings: Any) -> None:
        self.buckets = buckets
        super().__init__(**settings)

    def _make_convs(self, features: int, width: int, kernel_size: int) -> None:
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([features, width, width, 2 * width]):
            conv = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2)
            nn.init.kaiming_normal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.convs.append(conv)
            self.norms.append(nn.BatchNorm2d(after, eps=1e-3, momentum=0.01))  # Keras' defaults
        memory = torch.empty(width, self.buckets, kernel_size, kernel_size)
        self.mem_weight = nn.Parameter(nn.init.kaiming_normal_(memory))
        self.out = nn.Linear(2 * width, self.channels)

    def _written(self, features: Tensor, memory_BKRC: Tensor) -> Tensor:
        x = self._map_of(features)
        activation = ACTIVATIONS[self.activation]
        memory = self.cell.on_grid(x.shape[2], x.shape[3], self.buckets)
        padding = self.mem_weight.shape[-1] // 2
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            if i == 0:
                x = x + F.conv2d(memory, self.mem_weight, padding=padding)
            x = activation(norm(x))
        return self._read_out(self._pool(x).permute(0, 2, 3, 1))
