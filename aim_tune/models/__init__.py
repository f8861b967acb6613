"""The table of backbones: what a study may write under `backbone:` and which settings each row takes.

House rows first (CIFAR-style residual nets, MLP, small CNN), then every torchvision classification
network under its own name. Builders lie in the files named in the rows and are imported on first
use: reading this table needs no torch. A row `f` is called as f(classes=10, image_shape=(3, 32, 32),
**settings) and draws its weights from torch's global generator, which the caller seeds. Pretrained
weights are not offered: every arm starts from the same random weights.
"""

from __future__ import annotations

from aim_tune.spec.catalog import Entry, Setting

_WIDTH = Setting(kind="int", default=16, low=1, high=1024, doc="channels of the first stage")
_STEM = Setting(
    kind="str",
    default="imagenet",
    options=("imagenet", "small"),
    doc="imagenet: 7x7 stride 2 and max-pool, as in torchvision; small: 3x3 stride 1, no pool (for 32 px)",
)
_HEAD = Setting(
    kind="str",
    default="imagenet",
    options=("imagenet", "small"),
    doc="imagenet: three dense layers, as in torchvision; small: global average, one layer (for 32 px)",
)

TORCHVISION = (
    "alexnet",
    "convnext_base", "convnext_large", "convnext_small", "convnext_tiny",
    "densenet121", "densenet161", "densenet169", "densenet201",
    "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3", "efficientnet_b4",
    "efficientnet_b5", "efficientnet_b6", "efficientnet_b7",
    "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s",
    "googlenet", "inception_v3", "maxvit_t",
    "mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3",
    "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small",
    "regnet_x_16gf", "regnet_x_1_6gf", "regnet_x_32gf", "regnet_x_3_2gf", "regnet_x_400mf",
    "regnet_x_800mf", "regnet_x_8gf",
    "regnet_y_128gf", "regnet_y_16gf", "regnet_y_1_6gf", "regnet_y_32gf", "regnet_y_3_2gf",
    "regnet_y_400mf", "regnet_y_800mf", "regnet_y_8gf",
    "resnet101", "resnet152", "resnet18", "resnet34", "resnet50",
    "resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d",
    "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0",
    "squeezenet1_0", "squeezenet1_1",
    "swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t",
    "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
    "vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32",
    "wide_resnet101_2", "wide_resnet50_2",
)  # fmt: skip
"""torchvision 0.29's classification networks; a test compares with the installed version."""

_VARIANTS = {
    "resnet18": {"stem": _STEM},
    "resnet34": {"stem": _STEM},
    "resnet50": {"stem": _STEM},
    "vgg16_bn": {"head": _HEAD},
}
"""Settings beyond torchvision's own network, where small images need them."""


def _cifar_resnet(depth: int) -> Entry:
    return Entry(
        build="aim_tune.models.cifar_resnet:cifar_resnet",
        doc=f"CIFAR-style residual network with {depth} layers (He et al. 2016), three stages",
        settings={"width": _WIDTH},
        fixed={"depth": depth},
    )


def _torchvision(name: str) -> Entry:
    return Entry(
        build="aim_tune.models.torchvision_nets:torchvision_net",
        doc=f"torchvision.models.{name}",
        settings=_VARIANTS.get(name, {}),
        fixed={"name": name},
    )


BACKBONES: dict[str, Entry] = {
    "resnet8": _cifar_resnet(8),
    "resnet20": _cifar_resnet(20),
    "resnet56": _cifar_resnet(56),
    "mlp": Entry(
        build="aim_tune.models.small:mlp",
        doc="dense layers with ReLU on the flattened image",
        settings={
            "hidden": Setting(kind="int", default=256, low=1, high=65536, doc="units per layer"),
            "depth": Setting(kind="int", default=2, low=1, high=64, doc="hidden layers"),
        },
    ),
    "small_cnn": Entry(
        build="aim_tune.models.small:small_cnn",
        doc="two stages of two 3x3 convolutions with batch norm, global average, one dense layer",
        settings={"width": _WIDTH},
    ),
    "keras_resnet50": Entry(
        build="aim_tune.models.keras_resnet:keras_resnet50",
        doc="Keras' ResNet50: the control of the published AiM run",
        settings={
            "stem_stride": Setting(
                kind="int",
                default=2,
                options=(1, 2),
                doc="2: as in Keras; 1: as in the published AiM, four times the cost",
            )
        },
    ),
    **{name: _torchvision(name) for name in TORCHVISION},
}
"""Name in a study -> row."""
