"""The parts that `attach` puts into a network: the memory, layers that read it, blocks that rewrite it.

Reading is by linearity: conv([x, m]) = conv_x(x) + conv_m(m). Nothing is concatenated, and a memory
that the whole batch shares is convolved once, at batch size 1, and added by broadcasting. Readers keep
the parameters of the layer they replace and add `mem_weight`. Update blocks pool first (their
convolutions run at the size of the memory) or, as published, last. The current memory lives in a Cell
during a forward pass.
Legend: B images, K memory channels, R rows, C columns, F feature channels, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons.memory.layout import LAYOUTS, token_grid
from aim_tune.errors import AttachError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
"""Name in a study -> what update blocks use after batch norm."""

MOMENTUM = 0.1
"""Share of the newest batch in the running memory that evaluation uses with write="batch", and in what
carry="ema" carries to the next batch."""


class Cell:
    """The memory of the forward pass that is under way: [1 or B, K, R, C], or None between passes.

    One per network, shared by its parts; copies and pickles start empty. Not for threads. `layout` is a
    name in LAYOUTS.
    """

    def __init__(self, layout: str = "aligned") -> None:
        self.layout = layout
        self.memory: Tensor | None = None
        self._maps: dict[tuple[int, int, int], Tensor] = {}

    def __reduce__(self) -> tuple[type[Cell], tuple[str]]:
        return (Cell, (self.layout,))

    def write(self, memory_BKRC: Tensor | None) -> None:
        """Make this the current memory."""
        self.memory = memory_BKRC
        self._maps = {}

    def current(self) -> Tensor:
        """The memory; AttachError outside a forward pass of the whole network."""
        if self.memory is None:
            raise AttachError(
                "a layer that reads memory ran outside a forward pass of the whole network. Call the "
                "network itself, not its parts; activation checkpointing (which runs parts again "
                "during backward) is not supported."
            )
        return self.memory

    def on_grid(self, height: int, width: int, channels: int) -> Tensor:
        """The memory as a map [1 or B, channels, height, width], laid out once for all its readers."""
        key = (height, width, channels)
        memory = self.current()
        if key not in self._maps:
            self._maps[key] = LAYOUTS[self.layout](memory, height, width, channels)
        return self._maps[key]


class MemoryBank(nn.Module):
    """The memory that persists between batches, and the update blocks of the network.

    `learned` memory is a parameter, other memory a buffer. With `noise` every image reads fresh standard
    normal numbers in training, and zeros (their mean) in evaluation. With `carry` what the last update
    wrote, averaged over batches, is added to the memory at the start of a pass.
    """

    memory: Tensor
    carried: Tensor

    def __init__(
        self,
        memory_KRC: Tensor,
        *,
        learned: bool,
        layout: str = "aligned",
        noise: bool = False,
        carry: bool = False,
    ) -> None:
        super().__init__()
        self.cell = Cell(layout)
        self.updates = nn.ModuleList()
        self.noise, self.carry = noise, carry
        if learned:
            self.memory = nn.Parameter(memory_KRC[None])
        else:
            self.register_buffer("memory", memory_KRC[None])
        if carry:
            self.register_buffer("carried", torch.zeros_like(memory_KRC[None]))

    def forward(self, x: Any) -> Any:
        """x unchanged: a network that is one nn.Sequential also runs the bank, at its end."""
        return x

    def start(self) -> Tensor:
        """What the first reader of a pass sees: [1, K, R, C]."""
        return self.memory + self.carried if self.carry else self.memory

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook before the network's forward pass."""
        if not self.noise:
            self.cell.write(self.start())
        elif self.training:
            images = len(args[0]) if args else 1
            self.cell.write(torch.randn_like(self.memory.expand(images, -1, -1, -1)))
        else:
            self.cell.write(torch.zeros_like(self.memory))

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after the network's forward pass."""
        if self.carry and self.training:
            self._keep(self.cell.current())
        self.cell.write(None)

    def _keep(self, memory_BKRC: Tensor) -> None:
        """Move `carried` towards the batch's mean, the same on every process of a distributed training."""
        mean = memory_BKRC.detach().mean(0, keepdim=True).to(self.carried.dtype)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(mean)
            mean = mean / dist.get_world_size()
        self.carried.lerp_(mean, MOMENTUM)


class ConvBank(MemoryBank):
    """The published memory: a 1x1 convolution on ones, so that all its cells are equal.

    Its K x K weights stand for K numbers. With `second`, readers after the first block of a resolution
    read another such memory, which nothing writes.
    """

    def __init__(self, memory_KRC: Tensor, *, layout: str, second: bool) -> None:
        super().__init__(memory_KRC, learned=False, layout=layout)
        channels, self.rows, self.columns = memory_KRC.shape
        del self.memory
        self.first = _keras_linear(channels)
        self.second = _keras_linear(channels) if second else None
        self.second_cell = Cell(layout)

    def start(self) -> Tensor:
        """What the first reader of a pass sees: [1, K, R, C]."""
        return self._spread(self.first)

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook before the network's forward pass."""
        super().begin(module, args)
        if self.second is not None:
            self.second_cell.write(self._spread(self.second))

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Hook after the network's forward pass."""
        super().end(module, args, output)
        self.second_cell.write(None)

    def _spread(self, conv: nn.Linear) -> Tensor:
        numbers = conv(torch.ones_like(conv.bias))
        return numbers.view(1, -1, 1, 1).expand(-1, -1, self.rows, self.columns)


def _keras_linear(channels: int) -> nn.Linear:
    """Keras' default: Glorot's uniform, biases zero. The sum over ones has about unit variance."""
    layer = nn.Linear(channels, channels)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ReadConv2d(nn.Conv2d):
    """A Conv2d that also reads the memory, as if it were concatenated to its input."""

    mem_weight: nn.Parameter
    cell: Cell

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """conv(x) + conv of the memory laid over x."""
        out = super().forward(x_BFHW)
        memory = self.cell.on_grid(x_BFHW.shape[2], x_BFHW.shape[3], self.mem_weight.shape[1])
        return out.add_(self._conv_forward(memory, self.mem_weight, None))


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
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in pairwise([features + self.channels, width, width, width]):
            self.convs.append(_conv(before, after, kernel_size))
            self.norms.append((nn.BatchNorm1d if kernel_size == 1 else nn.BatchNorm2d)(after))
        self.out = nn.Linear(width, self.channels)

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

        Kernels of one position run as products over rows of positions: 2.5 times faster on a CPU.
        """
        activation = ACTIVATIONS[self.activation]
        rows = isinstance(self.convs[0], nn.Linear)
        x = x_BKRC.permute(0, 2, 3, 1).flatten(0, 2) if rows else x_BKRC
        if not rows:
            x = x.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = activation(norm(conv(x)))
        return x.unflatten(0, (-1, self.rows, self.columns)) if rows else x.permute(0, 2, 3, 1)

    def _map_of(self, features: Tensor) -> Tensor:
        return self._as_map(features.clone() if self.late_change else features)

    def _pool(self, x: Tensor) -> Tensor:
        """Averages [B, F, R, C]."""
        height, width = x.shape[2:]
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


def _conv(before: int, after: int, kernel_size: int) -> nn.Module:
    """A convolution without bias (batch norm follows), with He's initialization."""
    conv: nn.Linear | nn.Conv2d
    if kernel_size == 1:
        conv = nn.Linear(before, after, bias=False)
    else:
        conv = nn.Conv2d(before, after, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def as_reader(layer: Any, *, cell: Cell, mem_weight: Tensor) -> None:
    """Turn a layer into its reading subclass, in place: same object, same parameters, one more."""
    layer.__class__ = READERS[type(layer)]
    layer.cell = cell
    layer.mem_weight = nn.Parameter(mem_weight)


def as_plain(layer: Any) -> None:
    """Inverse of `as_reader`."""
    layer.__class__ = next(plain for plain, reader in READERS.items() if type(layer) is reader)
    del layer.cell, layer.mem_weight
