"""Keras' ResNet50 (keras-team/keras-applications, 2017): the control of the published AiM run.

Differs from torchvision's: convolutions have biases, the stride sits in the first 1x1 of a block, and
batch norm uses Keras' momentum. The published arms differed in stem stride, initializer and epsilon; here
there is one network with the values of the published AiM (He normal, epsilon 1e-3) and a stem stride to
choose, so that arms differ in what is asked only. Knows nothing of add-ons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-3
MOMENTUM = 0.01
"""Keras' 0.99, in torch's convention."""

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""Channels inside a block and number of blocks; a block ends with four times as many channels."""


class Bottleneck(nn.Module):
    """1x1 (with the stride), 3x3, 1x1 around a shortcut; with `project` that is a 1x1 as well."""

    def __init__(self, channels_in: int, channels: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, stride)
        self.bn1 = _norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = _norm(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1)
        self.bn3 = _norm(4 * channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if project:
            conv = nn.Conv2d(channels_in, 4 * channels, 1, stride)
            self.shortcut = nn.Sequential(conv, _norm(4 * channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features of 4 x channels channels, at 1/stride of the resolution."""
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + self.shortcut(x_BCHW))


class KerasResNet50(nn.Module):
    """7x7 stem and 3x3 max-pool, four stages of blocks, average, dense layer."""

    def __init__(self, *, channels_in: int, classes: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, 64, 7, stem_stride, padding=3)
        self.bn1 = _norm(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        before = 64
        for i, (channels, blocks) in enumerate(STAGES, start=2):
            first = Bottleneck(before, channels, stride=1 if i == 2 else 2, project=True)
            rest = [
                Bottleneck(4 * channels, channels, stride=1, project=False)
                for _ in range(blocks - 1)
            ]
            self.add_module(f"stage{i}", nn.Sequential(first, *rest))
            before = 4 * channels
        self.fc = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _he_normal(module)
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        for i in range(2, 2 + len(STAGES)):
            x = self.get_submodule(f"stage{i}")(x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def keras_resnet50(
    *, classes: int, image_shape: tuple[int, int, int], stem_stride: int = 2
) -> nn.Module:
    """Keras' ResNet50 for images [C, H, W] = image_shape."""
    return KerasResNet50(channels_in=image_shape[0], classes=classes, stem_stride=stem_stride)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


def _he_normal(conv: nn.Conv2d) -> None:
    """Keras' he_normal: a normal distribution cut at two standard deviations, biases zero."""
    fan_in = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
    sd = (2 / fan_in) ** 0.5 / 0.87962566103423978  # what the cut takes from the variance
    nn.init.trunc_normal_(conv.weight, std=sd, a=-2 * sd, b=2 * sd)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
