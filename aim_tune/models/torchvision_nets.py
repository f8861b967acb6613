"""torchvision's classification networks with any number of classes, input channels and image size.

Choices: no pretrained weights; no auxiliary heads (googlenet, inception_v3), so that a forward pass
gives logits in train and eval mode alike; for images that are not RGB the first convolution is
rebuilt from the three-channel draw. Source: torchvision.models.get_model. Knows nothing of add-ons.
"""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from aim_tune.errors import UserError

_NO_AUXILIARY = {"aux_logits": False, "init_weights": True}


def torchvision_net(
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    name: str,
    stem: str = "imagenet",
    head: str = "imagenet",
) -> nn.Module:
    """The network `name` for images [C, H, W] = image_shape.

    Raises UserError where the network cannot be built for this image size (vit_*, maxvit_t).
    """
    try:
        model = torchvision.models.get_model(
            name, weights=None, num_classes=classes, **_extra(name, image_shape)
        )
    except (ValueError, AssertionError) as error:
        height, width = image_shape[1:]
        raise UserError(
            f"{name} cannot be built for {height}x{width} images: {str(error).splitlines()[0]} "
            "Choose another image size or backbone."
        ) from error
    if stem == "small":
        model.conv1 = _kaiming(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.maxpool = nn.Identity()
    if head == "small":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Linear(512, classes)
    if image_shape[0] != 3:
        _take_channels(model, image_shape[0])
    return model


def _extra(name: str, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    height, width = image_shape[1:]
    if name.startswith("vit_"):
        if height != width:
            raise UserError(f"{name} takes square images only, got {height}x{width}.")
        return {"image_size": height}
    if name == "maxvit_t":
        return {"input_size": (height, width)}
    return _NO_AUXILIARY if name in ("googlenet", "inception_v3") else {}


def _take_channels(model: nn.Module, channels: int) -> None:
    """Let the first convolution take `channels` channels: summed for one (a grey image is then seen as
    if repeated three times), else repeated and scaled so that the output keeps its size."""
    name, old = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    assert (old.in_channels, old.groups) == (3, 1), f"{name} is not an RGB stem"
    index = torch.arange(channels) % 3
    weight: Tensor = (
        old.weight.sum(1, keepdim=True) if channels == 1 else old.weight[:, index] * (3 / channels)
    )
    old.in_channels = channels
    old.weight = nn.Parameter(weight.detach().clone())


def _kaiming(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
