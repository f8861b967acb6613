"""Arm and point -> network, and what the network costs.

One builder for every arm: the backbone's weights come from the stream `init` alone, whatever the arm,
and what an add-on draws comes from the stream `addon`. The global generator is left as it was.
`check_points` tries designs on meta tensors, so that an impossible one is refused before any training.
Knows no recipe and trains nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aim_tune.addons.dry_run import count_flops
from aim_tune.data.info import DataInfo
from aim_tune.errors import Fault, UserError
from aim_tune.spec.catalog import AddonEntry, Catalog, Setting
from aim_tune.spec.request import Point
from aim_tune.spec.space import Choice, Domain, Fixed, IntUniform, Uniform
from aim_tune.spec.study import BASELINE, Addon, Study

MOST_DESIGNS = 200
"""Designs that `check_points` tries at most."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a network costs, whatever it is trained on."""

    parameters: int
    trainable: int
    flops: int
    """Forward FLOPs of one image in eval mode: two per multiply-add of convolutions and products."""


def build_arm(
    study: Study,
    catalog: Catalog,
    arm: str,
    point: Point,
    *,
    streams: Mapping[str, int],
    info: DataInfo,
) -> nn.Module:
    """The network of `arm` at `point`, on the CPU. Same streams, same weights, in any process.

    Every arm gets the same backbone weights. Raises AttachError where the add-on's settings are
    impossible for the network, and other UserErrors of the builders.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(streams["init"])
        backbone = _backbone(study, catalog, info)
        if arm == BASELINE:
            return backbone
        entry, _ = _addon(study, catalog)
        torch.default_generator.manual_seed(streams["addon"])
        return _latch(entry, backbone, arm, point.addon, seed=streams["addon"], info=info)


def arm_cost(model: nn.Module, image_shape: tuple[int, int, int]) -> Cost:
    """Parameters and FLOPs of a network for images [C, H, W] = image_shape, without touching it."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Cost(
        parameters=sum(size for size, _ in sizes),
        trainable=sum(size for size, grad in sizes if grad),
        flops=count_flops(model, image_shape, torch.get_default_dtype()),
    )


def check_points(study: Study, catalog: Catalog, info: DataInfo) -> list[Fault]:
    """Faults of designs that cannot be built for this network and data; [] when all can.

    Tried are the arms at every shape setting of the add-on combined with each value of every other
    setting (ranges: both ends), on meta tensors, or on the CPU where a builder cannot do without
    values.
    """
    try:
        backbone, device = _tryable(lambda: _runs(_backbone(study, catalog, info), info))
    except Exception as error:
        return [_fault(study, "backbone", f"{study.backbone.name}: {_said(error)}")]
    if unsafe := _unsafe_layer(study, backbone):
        return [_fault(study, "recipe.channels_last", unsafe)]
    if study.addon is None or not study.addon_arms:
        return []
    entry, addon = _addon(study, catalog)
    faults: dict[str, Fault] = {}
    for design in _designs(addon, entry.settings):
        for arm in study.addon_arms:
            try:
                own = {**design, "widen_to": 0} if entry.matched.get(arm) == "step_ms" else design
                with device:
                    _latch(entry, copy.deepcopy(backbone), arm, own, seed=0, info=info)
            except Exception as error:
                varied = {k: v for k, v in design.items() if not isinstance(addon.space[k], Fixed)}
                text = f"{_said(error)} (arm {arm}, with {varied or design})"
                faults.setdefault(_said(error), _fault(study, "addon", text))
    return list(faults.values())


def _backbone(study: Study, catalog: Catalog, info: DataInfo) -> nn.Module:
    row = catalog.backbones[study.backbone.name]
    settings = {**row.fixed, **study.backbone.settings}
    return row.load()(classes=info.classes, image_shape=info.image_shape, **settings)


def _addon(study: Study, catalog: Catalog) -> tuple[AddonEntry, Addon]:
    assert study.addon is not None, f"arms {study.arms} need an add-on"
    return catalog.addons[study.addon.name], study.addon


def _latch(
    entry: AddonEntry,
    backbone: nn.Module,
    arm: str,
    settings: Mapping[str, Any],
    *,
    seed: int,
    info: DataInfo,
) -> nn.Module:
    own = {**entry.fixed, **settings}
    return entry.load()(backbone, arm=arm, image_shape=info.image_shape, seed=seed, **own)


def _runs(model: nn.Module, info: DataInfo) -> nn.Module:
    """`model`, if it takes images of this shape; else AttachError."""
    count_flops(model, info.image_shape, torch.get_default_dtype())
    return model


def _tryable(build: Callable[[], nn.Module]) -> tuple[nn.Module, torch.device]:
    """What `build` gives on the meta device or, where that fails, on the CPU; and the device."""
    try:
        meta = torch.device("meta")
        with meta:
            return build(), meta
    except Exception:
        cpu = torch.device("cpu")
        with torch.random.fork_rng(devices=[]):
            return build(), cpu


def _unsafe_layer(study: Study, model: nn.Module) -> str:
    """What is wrong with the first layer that this study cannot train in channels_last; "" if nothing.

    oneDNN, in torch 2.15 on a CPU, writes the float32 gradient of a 1x1 convolution with stride 2 and fewer
    than 8 input channels beyond its memory: wrong weights, or a crash at any later time. Not so with other
    kernels and strides, with groups, in bfloat16, float64 or NCHW (tried under the allocator's checks).
    """
    recipe = study.recipe
    if not recipe.channels_last or recipe.amp or study.resources.gpu > 0:
        return ""
    convolutions = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    for name, layer in convolutions:
        shape = (layer.kernel_size, layer.stride, layer.groups)
        if shape == ((1, 1), (2, 2), 1) and layer.in_channels < 8:
            return (
                f"layer {name} of {study.backbone.name} is a 1x1 convolution with stride 2 and "
                f"{layer.in_channels} input channels: on a CPU torch damages memory when it trains such a "
                "layer in this format. Set recipe.channels_last to false, or give the layer 8 channels."
            )
    return ""


def _designs(addon: Addon, settings: Mapping[str, Setting]) -> Iterator[dict[str, Any]]:
    """Every shape with each value of every other setting, the rest at its first value."""
    values = {name: _values(domain) for name, domain in addon.space.items()}
    shapes: list[dict[str, Any]] = [{}]
    for name in values:
        if name in settings and settings[name].kind == "shape":
            shapes = [{**shape, name: value} for shape in shapes for value in values[name]]
    first = {name: options[0] for name, options in values.items()}
    designs = [{**first, **shape} for shape in shapes]
    for name, options in values.items():
        if name not in shapes[0]:
            designs += [{**first, **s, name: value} for s in shapes for value in options[1:]]
    yield from designs[:MOST_DESIGNS]


def _values(domain: Domain) -> list[Any]:
    match domain:
        case Fixed(value):
            return [value]
        case Choice(options):
            return list(options)
        case IntUniform(low, high) | Uniform(low, high):
            return [low, high]


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _fault(study: Study, key: str, text: str) -> Fault:
    return Fault(where=f"study {study.name}", key=key, text=text)
