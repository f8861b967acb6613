"""Two small networks for quick studies: dense layers, and a plain convolutional net.

Both are one nn.Sequential: readable by eye and by anything that walks modules. Weights as torch
draws them by default. Knows nothing of add-ons.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn


def mlp(
    *, classes: int, image_shape: tuple[int, int, int], hidden: int = 256, depth: int = 2
) -> nn.Module:
    """`depth` hidden layers of `hidden` units with ReLU on the flattened image."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    units = math.prod(image_shape)
    for i in range(1, depth + 1):
        layers[f"dense{i}"] = nn.Linear(units, hidden)
        layers[f"relu{i}"] = nn.ReLU()
        units = hidden
    layers["out"] = nn.Linear(units, classes)
    return nn.Sequential(layers)


def small_cnn(*, classes: int, image_shape: tuple[int, int, int], width: int = 16) -> nn.Module:
    """Two stages (width, 2 width channels) of two 3x3 convolutions and a max-pool, average, dense layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = image_shape[0]
    for stage in (1, 2):
        for i in (1, 2):
            out = width * stage
            layers[f"conv{stage}_{i}"] = nn.Conv2d(channels, out, 3, padding=1, bias=False)
            layers[f"bn{stage}_{i}"] = nn.BatchNorm2d(out)
            layers[f"relu{stage}_{i}"] = nn.ReLU(inplace=True)
            channels = out
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["out"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
