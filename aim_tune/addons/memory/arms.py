"""The networks of all arms for the table of add-ons: one builder, so that arms differ in nothing else.

Arms with a memory come from `attach`. Matched arms have none: they are the backbone, widened or trained
longer until it costs what `aim` costs (Price and chains: addons/wide.py). Parameters and FLOPs are counted
here; step times and seconds are measured by a study, which then says how wide or how long.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_tune.addons.dry_run import dry_run
from aim_tune.addons.memory.attach import attach
from aim_tune.addons.memory.settings import ARMS, PRESETS
from aim_tune.addons.wide import widened
from aim_tune.errors import AttachError, unknown

MATCHED = ("wide", "flop_matched", "step_matched", "time_matched")
"""Arms without a memory."""


def build(
    backbone: nn.Module,
    *,
    arm: str,
    image_shape: tuple[int, int, int],
    seed: int,
    widen_to: int | None = None,
    **settings: Any,
) -> nn.Module:
    """The network of an arm for images [C, H, W] = image_shape; `settings` are those of `attach`.

    Matched arms: `wide` has the parameters that `aim` has with these settings, `flop_matched` its FLOPs,
    `step_matched` as many parameters as the study measured to take the time of a step of `aim`
    (`widen_to`; the backbone as it is where that is no more than it has). `time_matched` is the backbone
    itself, which a study trains for more steps. Raises AttachError for what cannot be built.
    """
    example = torch.zeros(1, *image_shape)
    given = {"seed": seed, "example_input": example, "measured": False, **settings}
    if arm in ARMS:
        return attach(backbone, arm=arm, **given)[0]
    if arm not in MATCHED:
        raise AttachError(unknown("arm", arm, [*ARMS, *MATCHED]))
    if arm == "time_matched":
        return backbone
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return widened(backbone, **_target(backbone, arm, widen_to, given))


def _target(
    backbone: nn.Module, arm: str, widen_to: int | None, given: dict[str, Any]
) -> dict[str, Any]:
    """What the widened backbone shall cost, as `widened` takes it."""
    if arm == "step_matched":
        if widen_to is None:
            raise AttachError(
                "arm step_matched needs widen_to, the number of parameters at which a step takes as long "
                "as one of aim: a study measures it before its first block. Build this arm in a study."
            )
        return {"parameters": max(widen_to, _parameters(backbone))}
    aim = attach(copy.deepcopy(backbone), arm="aim", **given)[0]
    if arm == "wide":
        return {"parameters": _parameters(aim)}
    example: Tensor = given["example_input"]
    return {"flops": dry_run(aim, example).flops, "example_input": example}


def build_published(
    backbone: nn.Module,
    *,
    arm: str,
    image_shape: tuple[int, int, int],
    seed: int,
    memory_shape: Sequence[int],
) -> nn.Module:
    """An arm of the published comparison, from the same weights and initializers as all others.

    `backbone` is keras_resnet50 with stem_stride 1; the arms with stride 2 change that stride only.
    Raises AttachError for other backbones and for a memory that does not fit.
    """
    stem = getattr(backbone, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or stem.stride != (1, 1):
        raise AttachError(
            "published_memory needs the backbone keras_resnet50 with stem_stride: 1; its arms "
            "aim_stride2 and plain_stride2 set the other stride themselves."
        )
    if arm.endswith("_stride2"):
        stem.stride = (2, 2)
    if arm == "plain_stride2":
        return backbone
    settings = {
        **PRESETS["described" if arm == "described" else "published"],
        "memory_shape": memory_shape,
        "arm": "frozen" if arm == "frozen" else "aim",
    }
    example = torch.zeros(1, *image_shape)
    return attach(backbone, seed=seed, example_input=example, measured=False, **settings)[0]


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
