"""Which images a step sees, and how they are altered: functions of (stream, epoch) and (stream, step).

Order: one permutation of the training images per epoch, laid end to end and cut into batches, so no
image is ever dropped and every batch is full. Random numbers are drawn on the CPU, so that a GPU sees
the same draws; the alterations are done by batch, where the images are.
Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from aim_tune.spec.values import derive_seed


def generator(stream: int, position: int) -> torch.Generator:
    """A CPU generator that depends on the stream and the position (epoch or step) only."""
    return torch.Generator().manual_seed(derive_seed(stream, position))


@dataclass(frozen=True)
class Part:
    """Which of `size` equal slices of each batch a process trains on."""

    rank: int = 0
    size: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """The slice; the batch itself where it is the whole."""
        count = len(batch) // self.size
        return batch if self.size == 1 else batch[self.rank * count : (self.rank + 1) * count]


WHOLE = Part()


class Batches(Sequence[Tensor]):
    """Positions [B] of the images of each step from `start` to `total`; any step can be asked for.

    With `part`, those of its slice of the step.
    """

    def __init__(
        self,
        train: Tensor,
        *,
        batch_size: int,
        order: int,
        start: int,
        total: int,
        part: Part = WHOLE,
    ) -> None:
        self._train, self._size, self._stream, self._part = train, batch_size, order, part
        self._steps = range(start, total)
        self._permutation = lru_cache(maxsize=2)(self._permuted)

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = self._steps[index] * self._size
        parts, wanted = [], self._size
        while wanted > 0:
            epoch, offset = divmod(first, len(self._train))
            parts.append(self._permutation(epoch)[offset : offset + wanted])
            first, wanted = first + len(parts[-1]), wanted - len(parts[-1])
        return self._part.of(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _permuted(self, epoch: int) -> Tensor:
        shuffle = torch.randperm(len(self._train), generator=generator(self._stream, epoch))
        return self._train[shuffle]


@dataclass(frozen=True)
class Draw:
    """Random numbers for the images of a batch, of which `part` is here: its numbers in the whole batch's."""

    generator: torch.Generator
    part: Part = WHOLE

    def integers(self, low: int, high: int, count: int) -> Tensor:
        """[count] whole numbers from low to high - 1."""
        size = (count * self.part.size,)
        return self.part.of(torch.randint(low, high, size, generator=self.generator))

    def unit(self, count: int) -> Tensor:
        """[count] numbers in [0, 1)."""
        return self.part.of(torch.rand(count * self.part.size, generator=self.generator))

    def between(self, low: float, high: float, count: int) -> Tensor:
        """[count] numbers in [low, high)."""
        return low + (high - low) * self.unit(count)


def augment(
    images_BCHW: Tensor, kinds: Sequence[str], *, stream: int, step: int, part: Part = WHOLE
) -> Tensor:
    """Altered copies, as `kinds` asks, in the order of _KINDS; drawn from (stream, step).

    Each kind has its own draws, so that adding one does not change the others. Images that are a `part` of
    the step's are altered as they are among all of them.
    """
    for kind in _KINDS:
        if kind in kinds:
            draw = Draw(generator(derive_seed(stream, kind), step), part)
            images_BCHW = _KINDS[kind](images_BCHW, draw)
    return images_BCHW


def flip(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Left and right exchanged in about half of the images."""
    chosen = draw.unit(len(images_BCHW)) < 0.5
    chosen = chosen.to(images_BCHW.device).view(-1, 1, 1, 1)
    return torch.where(chosen, images_BCHW.flip(3), images_BCHW)


def flip_vertical(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Top and bottom exchanged in about half of the images."""
    chosen = draw.unit(len(images_BCHW)) < 0.5
    chosen = chosen.to(images_BCHW.device).view(-1, 1, 1, 1)
    return torch.where(chosen, images_BCHW.flip(2), images_BCHW)


def rotate(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Each image turned about its middle by up to 0.15 turn either way; edges reflect (Keras' defaults)."""
    return rotated(images_BCHW, draw.between(-0.15, 0.15, len(images_BCHW)))


def translate(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Each image shifted by up to 0.1 of its sides; edges reflect (Keras' defaults)."""
    down = draw.between(-0.1, 0.1, len(images_BCHW))
    return translated(images_BCHW, down, draw.between(-0.1, 0.1, len(images_BCHW)))


def contrast(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Each image's contrast times 0.9 to 1.1."""
    return contrasted(images_BCHW, draw.between(0.9, 1.1, len(images_BCHW)))


def rotated(images_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Images turned counterclockwise by `turns_B` full turns, between pixels by bilinear weights."""
    height, width = images_BCHW.shape[2:]
    cos, sin = torch.cos(2 * math.pi * turns_B), torch.sin(2 * math.pi * turns_B)
    none = torch.zeros_like(cos)
    rows = [cos, -sin * height / width, none, sin * width / height, cos, none]
    return _resampled(images_BCHW, torch.stack(rows, 1).view(-1, 2, 3))


def translated(images_BCHW: Tensor, down_B: Tensor, right_B: Tensor) -> Tensor:
    """Images shifted by shares of their sides, between pixels by bilinear weights."""
    one, none = torch.ones_like(down_B), torch.zeros_like(down_B)
    rows = [one, none, -2 * right_B, none, one, -2 * down_B]
    return _resampled(images_BCHW, torch.stack(rows, 1).view(-1, 2, 3))


def contrasted(images_BCHW: Tensor, factors_B: Tensor) -> Tensor:
    """Each channel's distance from its own mean over the image times a factor."""
    mean = images_BCHW.mean((2, 3), keepdim=True)
    return mean + (images_BCHW - mean) * factors_B.to(images_BCHW.device).view(-1, 1, 1, 1)


def _resampled(images_BCHW: Tensor, maps_B23: Tensor) -> Tensor:
    """Images read where `maps_B23` sends each place (sides go from -1 to 1); beyond an edge, mirrored."""
    grid = F.affine_grid(maps_B23.to(images_BCHW), list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW, grid, padding_mode="reflection", align_corners=False)


def crop(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """Each image shifted by up to 1/8 of its side up, down, left or right; zeros move in."""
    count, _, height, width = images_BCHW.shape
    reach_y, reach_x = height // 8, width // 8
    down = draw.integers(0, 2 * reach_y + 1, count)
    right = draw.integers(0, 2 * reach_x + 1, count)
    padded = F.pad(images_BCHW, (reach_x, reach_x, reach_y, reach_y))
    rows = (down[:, None] + torch.arange(height)).to(images_BCHW.device)
    columns = (right[:, None] + torch.arange(width)).to(images_BCHW.device)
    image = torch.arange(count, device=images_BCHW.device)
    # advanced indices around the channel slice put it last: [B, H, W, C]
    picked = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()


def cutout(images_BCHW: Tensor, draw: Draw) -> Tensor:
    """One square of a quarter of the side set to zero (the mean) in each image (DeVries, Taylor 2017)."""
    count, _, height, width = images_BCHW.shape
    side_y, side_x = max(1, height // 4), max(1, width // 4)
    top = draw.integers(0, height - side_y + 1, count)[:, None]
    left = draw.integers(0, width - side_x + 1, count)[:, None]
    y, x = torch.arange(height), torch.arange(width)
    rows = (y >= top) & (y < top + side_y)
    columns = (x >= left) & (x < left + side_x)
    covered = (rows[:, None, :, None] & columns[:, None, None, :]).to(images_BCHW.device)
    return images_BCHW.masked_fill(covered, 0.0)


_KINDS = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "rotate": rotate,
    "translate": translate,
    "crop": crop,
    "contrast": contrast,
    "cutout": cutout,
}
"""Name in a recipe -> what is done, in this order."""
