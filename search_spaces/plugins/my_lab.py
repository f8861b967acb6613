"""A plug-in: a network, a data set and an add-on of your own, for plugin_example.yaml.

Keyword-only parameters become the settings of the study file; their defaults give kind and default.
"""

import numpy as np
import torch
from torch import nn


def two_convs(*, classes: int, image_shape: tuple[int, int, int], width: int = 8) -> nn.Module:
    """Two convolutions, then the mean over the image."""
    return nn.Sequential(
        nn.Conv2d(image_shape[0], width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )  # fmt: skip


def stripes(*, side: int = 12, noise_sd: float = 2.0, seed: int = 0):
    """Noisy stripes in one of four directions: 800 images to train on, 400 to test on."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=1200)
    angle, phase = labels * np.pi / 4, rng.uniform(0, 2 * np.pi, 1200)
    row, column = np.mgrid[:side, :side]
    along = np.cos(angle)[:, None, None] * row + np.sin(angle)[:, None, None] * column
    images = np.sin(along + phase[:, None, None]) + rng.normal(0, noise_sd, along.shape)
    images = images[:, None].astype(np.float32)  # NCHW
    return images[:800], labels[:800], images[800:], labels[800:]


class WithOffset(nn.Module):
    """A network whose input gets the same picture added each time."""

    def __init__(self, backbone: nn.Module, picture: torch.Tensor, *, trained: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.picture = nn.Parameter(picture, requires_grad=trained)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of each class."""
        return self.backbone(images + self.picture)


class Offset:
    """A learned picture that is added to every image."""

    arms = {"offset": "a learned picture", "frozen_offset": "a random picture, never trained"}  # noqa: RUF012
    primary, placebo = "offset", "frozen_offset"

    @staticmethod
    def build(backbone, *, arm, image_shape, seed, scale: float = 0.1) -> nn.Module:
        """The network of one arm; `backbone` comes with its weights, `seed` is for the add-on's."""
        picture = torch.randn(image_shape, generator=torch.Generator().manual_seed(seed))
        return WithOffset(backbone, scale * picture, trained=arm == Offset.primary)


BACKBONES, DATASETS, ADDONS = {"two_convs": two_convs}, {"stripes": stripes}, {"offset": Offset}
