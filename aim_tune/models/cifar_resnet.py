"""Residual networks for small images (He et al. 2016, section 4.2): 6n+2 layers, three stages.

Choice: shortcuts that change the shape are 1x1 convolutions with batch norm (option B), which is what
most published CIFAR code trains. Weights are drawn like torchvision's. Knows nothing of add-ons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of `channels` channels, at 1/stride of the resolution."""
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        return self.relu(self.bn2(self.conv2(out)) + self.shortcut(x_BCHW))


class CifarResNet(nn.Module):
    """Stem, three stages of n blocks with width, 2 width, 4 width channels, average, dense layer."""

    def __init__(self, *, depth: int, width: int, channels_in: int, classes: int) -> None:
        super().__init__()
        assert (depth - 2) % 6 == 0, f"depth must be 6n+2, got {depth}"
        blocks = (depth - 2) // 6
        self.conv = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.stage1 = _stage(width, width, blocks, stride=1)
        self.stage2 = _stage(width, 2 * width, blocks, stride=2)
        self.stage3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = self.relu(self.bn(self.conv(images_BCHW)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def _stage(channels_in: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def cifar_resnet(
    *, classes: int, image_shape: tuple[int, int, int], depth: int, width: int = 16
) -> nn.Module:
    """A CifarResNet for images [C, H, W] = image_shape; depth is 6n+2 (8, 20, 56)."""
    return CifarResNet(depth=depth, width=width, channels_in=image_shape[0], classes=classes)
