"""The published AiM-ResNet50 (March 2021) block for block, with its flaws: a reference to count and compare.

Source: the article's Keras code. Memory is concatenated to the input of the first 1x1 convolution of
each of the 16 blocks. Kept as published: memory is a 1x1 convolution on ones, so its 49 cells are equal;
only the four blocks with a shortcut convolution read what updates write, the other twelve read a second
memory that nothing writes; the update of stage 5 has no reader and is absent from the graph. Slow on
purpose (plain concatenation, updates at full resolution): `attach` with PRESETS["published"] is
the same function from the builder of all arms. Names here follow it, so that weights can be copied.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
EPSILON, MOMENTUM = 1e-3, 0.01
Shape = tuple[int, int, int]


def published_resnet50(
    *,
    classes: int = 100,
    image_size: int = 224,
    memory_shape: Shape = (7, 7, 1024),
    stem_stride: int = 1,
) -> nn.Module:
    """The published network for RGB images of image_size x image_size.

    26,673,380 parameters as Keras counts them (`keras_count`), 26,619,876 of them trainable.

    Raises ValueError where the published reshape does not work out (the number of memory cells is no
    multiple of the positions of a stage).
    """
    return PublishedResNet50(classes, image_size, memory_shape, stem_stride)


def keras_count(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters as Keras counts them: the statistics of batch norms belong to all."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    statistics = sum(2 * m.num_features for m in norms)
    return trainable + frozen + statistics, trainable


def reshape_as_published(memory_BRCK: Tensor, height: int, width: int) -> Tensor:
    """`memory_reshape_block` of the article, channels last: [B, height, width, buckets].

    Equal numbers and positions, where the article's function returns nothing, are one bucket.
    """
    numbers = memory_BRCK[0].numel()
    side = math.isqrt(numbers - 1) + 1
    flat = memory_BRCK.reshape(-1, numbers)
    if height > side:
        flat = F.pad(flat, [(side * side - numbers) // 2] * 2)
        edge = (height - side) // 2
        return F.pad(flat.reshape(-1, side, side), [edge] * 4)[..., None]
    if numbers % (height * width):
        raise ValueError(
            f"{numbers} memory numbers do not fill a {height}x{width} map evenly, which the published "
            "reshape needs. Choose an image size and memory_shape that divide."
        )
    return flat.reshape(-1, height, width, numbers // (height * width))


class Block(nn.Module):
    """Keras' conv_block (`project`) or identity_block, with memory at the first 1x1."""

    def __init__(self, before: int, channels: int, memory: int, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before + memory, channels, 1, stride)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = _norm(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1)
        self.bn3 = _norm(4 * channels)
        self.shortcut: nn.Module = nn.Identity()
        if project:
            conv = nn.Conv2d(before, 4 * channels, 1, stride)
            self.shortcut = nn.Sequential(conv, _norm(4 * channels))

    def forward(self, x_BCHW: Tensor, memory_BKRC: Tensor) -> Tensor:
        """New features."""
        out = F.relu(self.bn1(self.conv1(_with(x_BCHW, memory_BKRC))))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x_BCHW))


class Update(nn.Module):
    """`memory_update_block`: three 3x3 convolutions at full resolution, average, 1x1 convolution."""

    def __init__(self, features: int, memory: int, memory_shape: Shape) -> None:
        super().__init__()
        self.rows, self.columns, channels = memory_shape
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for before, after in ((features + memory, 16), (16, 16), (16, 32)):
            self.convs.append(nn.Conv2d(before, after, 3, padding=1))
            self.norms.append(_norm(after))
        self.out = nn.Conv2d(32, channels, 1)

    def forward(self, x_BCHW: Tensor, memory_BKRC: Tensor) -> Tensor:
        """New memory [B, K, R, C]."""
        x = _with(x_BCHW, memory_BKRC)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.sigmoid(norm(conv(x)))
        factor = (x.shape[2] // self.rows, x.shape[3] // self.columns)
        return self.out(F.avg_pool2d(x, factor))


class PublishedResNet50(nn.Module):
    """See `published_resnet50`."""

    def __init__(
        self, classes: int, image_size: int, memory_shape: Shape, stem_stride: int
    ) -> None:
        super().__init__()
        self.memory_shape = memory_shape
        numbers, channels = math.prod(memory_shape), memory_shape[2]
        self.first = nn.Conv2d(channels, channels, 1)
        self.second = nn.Conv2d(channels, channels, 1)
        self.conv1 = nn.Conv2d(3, 64, 7, stem_stride, padding=3)
        self.bn1 = _norm(64)
        side = (image_size - 1) // stem_stride + 1  # of the stem's output
        side = (side - 1) // 2 + 1  # of the max-pool's
        self.stages, self.updates = nn.ModuleList(), nn.ModuleList()
        before = 64
        for i, (width, blocks) in enumerate(STAGES):
            stride = 1 if i == 0 else 2
            stage = [Block(before, width, _buckets(numbers, side), stride, True)]
            side = (side - 1) // stride + 1
            before, memory = 4 * width, _buckets(numbers, side)
            stage += [Block(before, width, memory, 1, False) for _ in range(blocks - 1)]
            self.stages.append(nn.ModuleList(stage))
            if i < len(STAGES) - 1:
                self.updates.append(Update(before, memory, memory_shape))
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        keras_default = [self.first, self.second, *(update.out for update in self.updates), self.fc]
        for layer in keras_default:  # Glorot: the article names no initializer here
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[union-attr,arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[union-attr,arg-type]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, classes]."""
        rows, columns, channels = self.memory_shape
        ones = images_BCHW.new_ones(len(images_BCHW), channels, rows, columns)
        memory, static = self.first(ones), self.second(ones)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images_BCHW))), 3, 2, padding=1)
        for i, stage in enumerate(self.stages):
            blocks = list(stage.children())
            x = blocks[0](x, memory)
            if i < len(self.updates):
                memory = self.updates[i](x, memory)
            for block in blocks[1:]:
                x = block(x, static)
        return self.fc(x.mean((2, 3)))


def _with(x_BCHW: Tensor, memory_BKRC: Tensor) -> Tensor:
    """x with the memory, reshaped as published, behind its channels."""
    laid = reshape_as_published(memory_BKRC.permute(0, 2, 3, 1), *x_BCHW.shape[2:])
    return torch.cat([x_BCHW, laid.permute(0, 3, 1, 2)], 1)


def _buckets(numbers: int, side: int) -> int:
    return max(1, numbers // (side * side))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)
