"""Takes pictures of a network's memory: before and after a training, and after the updates of one pass.

Changes nothing: a pass in eval mode without gradients, in whatever mode the network is left. What is kept
and how it is drawn: addons/pictures.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aim_tune.addons.memory.attach import memory_of
from aim_tune.addons.pictures import IMAGES, MemoryPictures


class MemoryAlbum:
    """Made before a training, finished after it."""

    def __init__(self, model: nn.Module) -> None:
        self.start = _array(memory_of(model).start())[0]

    def finish(
        self, model: nn.Module, images: Tensor, labels: Sequence[int] = ()
    ) -> MemoryPictures:
        """The pictures of the trained network; `images` [B, ...] are some that it was not trained on."""
        bank = memory_of(model)
        written = np.zeros((0, *self.start.shape), dtype=np.float32)
        if len(bank.updates):
            written = _array(last_memory(model, images[:IMAGES]))
        end = _array(bank.start())[0]
        return MemoryPictures.of(self.start, end, written, labels=labels[:IMAGES])


def last_memory(model: nn.Module, images: Tensor) -> Tensor:
    """The memory at the end of a pass in eval mode: [B or 1, K, R, C]."""
    bank = memory_of(model)
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(bank.cell.current())

    training = {m: m.training for m in model.modules()}
    handle = model.register_forward_hook(look, prepend=True)  # before the bank forgets it
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        handle.remove()
        for module, mode in training.items():
            module.training = mode
    return seen[0]


def _array(memory: Tensor) -> NDArray[np.float32]:
    return memory.detach().float().cpu().numpy().copy()
