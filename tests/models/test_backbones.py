"""The table of backbones: complete, torch-free, and every row builds what its name says."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from aim_tune.errors import UserError
from aim_tune.models import BACKBONES, TORCHVISION

torch.set_num_threads(1)


def build(name: str, image_shape: tuple[int, int, int] = (3, 32, 32), **settings: Any) -> nn.Module:
    row = BACKBONES[name]
    return row.load()(
        classes=10, image_shape=image_shape, **{**row.defaults(), **row.fixed, **settings}
    )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_reading_the_table_needs_no_torch() -> None:
    code = "import sys, aim_tune.models, aim_tune.addons; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_torchvision_classification_network_is_a_row() -> None:
    installed = torchvision.models.list_models(module=torchvision.models)
    assert set(TORCHVISION) == set(installed)
    assert set(TORCHVISION) < set(BACKBONES)


def test_every_builder_takes_the_settings_of_its_row() -> None:
    for name, row in BACKBONES.items():
        accepted = set(inspect.signature(row.load()).parameters)
        assert {"classes", "image_shape", *row.settings, *row.fixed} <= accepted, name


@pytest.mark.parametrize(
    ("name", "image_shape", "settings", "expected"),
    [
        ("resnet8", (3, 16, 16), {"width": 8}, 19_954),  # the network of the method's first check
        ("resnet20", (3, 32, 32), {}, 272_474),  # He et al.: 0.27 M
        ("resnet56", (3, 32, 32), {}, 855_770),  # He et al.: 0.85 M
        ("resnet18", (3, 64, 64), {}, 11_181_642),  # torchvision with 10 classes
        ("resnet50", (3, 64, 64), {}, 23_528_522),
        ("mlp", (1, 28, 28), {"hidden": 64, "depth": 1}, 784 * 64 + 64 + 64 * 10 + 10),
    ],
)
def test_a_backbone_has_the_known_number_of_parameters(
    name: str, image_shape: tuple[int, int, int], settings: dict[str, Any], expected: int
) -> None:
    with torch.device("meta"):
        assert parameters(build(name, image_shape, **settings)) == expected


@pytest.mark.parametrize(
    ("name", "image_shape"),
    [
        ("resnet8", (1, 8, 8)),
        ("small_cnn", (1, 12, 20)),
        ("mlp", (3, 8, 8)),
        ("vgg16_bn", (3, 32, 32)),
        ("googlenet", (1, 32, 32)),
        ("vit_b_16", (3, 32, 32)),
        ("mobilenet_v3_small", (4, 32, 32)),
    ],
)
def test_a_backbone_gives_one_logit_per_class_in_train_mode(
    name: str, image_shape: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        model = build(name, image_shape).train()
        assert model(torch.empty(2, *image_shape)).shape == (2, 10)


def test_the_small_stem_keeps_the_resolution_of_small_images() -> None:
    with torch.device("meta"):
        model = build("resnet18", stem="small")
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        assert stem(torch.empty(1, 3, 32, 32)).shape == (1, 64, 32, 32)
        assert build("resnet18").conv1.stride == (2, 2)


def test_the_small_head_of_vgg_is_one_dense_layer() -> None:
    with torch.device("meta"):
        model = build("vgg16_bn", head="small")
    assert isinstance(model.classifier, nn.Linear)
    assert parameters(model) == 14_728_266  # the usual CIFAR VGG16-BN


def test_a_grey_image_is_seen_as_the_same_image_repeated_in_three_channels() -> None:
    torch.manual_seed(3)
    grey = build("resnet18", (1, 32, 32)).eval()
    torch.manual_seed(3)
    rgb = build("resnet18", (3, 32, 32)).eval()
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(grey(image), rgb(image.expand(1, 3, 32, 32)))


def test_the_same_seed_draws_the_same_weights() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append(build("resnet8", width=4).state_dict())
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


def test_an_image_size_that_cannot_be_built_is_refused_with_advice() -> None:
    with pytest.raises(
        UserError, match=r"maxvit_t cannot be built for 32x32 .* another image size"
    ):
        build("maxvit_t")
    with pytest.raises(UserError, match="square images only, got 32x48"):
        build("vit_b_16", (3, 32, 48))
