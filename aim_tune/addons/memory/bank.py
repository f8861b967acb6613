"""The memory of a network, and the Cell through which its parts see it during one forward pass.

Legend: B images, K memory channels, R rows, C columns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aim_tune.addons.memory.layout import LAYOUTS
from aim_tune.errors import AttachError

MOMENTUM = 0.1
"""Share of the newest batch in the running memory that evaluation uses with write="batch", and in what
carry="ema" carries to the next batch."""


NCHW = torch.contiguous_format


def form_of(x: Tensor) -> torch.memory_format:
    """channels_last for a map that lies so in memory, else contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else NCHW


class Cell:
    """The memory of the forward pass that is under way: [1 or B, K, R, C], or None between passes.

    One per network, shared by its parts; copies and pickles start empty. Not for threads. `layout` is a
    name in LAYOUTS.
    """

    def __init__(self, layout: str = "aligned") -> None:
        self.layout = layout
        self.memory: Tensor | None = None
        self._maps: dict[tuple[int, int, int, torch.memory_format], Tensor] = {}

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

    def on_grid(
        self, height: int, width: int, channels: int, form: torch.memory_format = NCHW
    ) -> Tensor:
        """The memory as a map [1 or B, channels, height, width], laid out once for all its readers.

        `form` is that of the features: a convolution of a map in another form copies its weights.
        """
        key = (height, width, channels, form)
        memory = self.current()
        if key not in self._maps:
            laid = LAYOUTS[self.layout](memory, height, width, channels)
            self._maps[key] = laid.contiguous(memory_format=form)
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
