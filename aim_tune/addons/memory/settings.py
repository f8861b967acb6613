"""What may be asked of `attach`: arms, presets, choices, and the refusal of what cannot be.

Checks come before anything is changed; each says what was found, what is allowed and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from aim_tune.addons.dry_run import Trace, dry_run
from aim_tune.addons.memory.plan import Plan, Shape
from aim_tune.addons.memory.readable import readable
from aim_tune.addons.memory.updates import ACTIVATIONS
from aim_tune.errors import AttachError, unknown


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What an arm does with its memory."""

    learned: bool = False
    """Whether memory is a parameter."""
    rewritten: bool = False
    """Whether update blocks rewrite it."""
    layout: str | None = None
    """Replaces the setting; control arms without positions or without numbers have their own."""
    noise: bool = False
    shuffled: bool = False


ARMS: dict[str, Arm] = {
    "aim": Arm(learned=True, rewritten=True),
    "no_update": Arm(learned=True),
    "frozen": Arm(),
    "reset": Arm(rewritten=True),
    "shuffled": Arm(learned=True, rewritten=True, shuffled=True),
    "constant": Arm(learned=True, layout="constant"),
    "coordinates": Arm(layout="coordinates"),
    "noise": Arm(noise=True),
}
"""Arm -> what it does with its memory; `arms.build` knows those without one as well."""

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"memory_shape": (4, 4, 16)},
    "described": {
        "memory_shape": (7, 7, 1024),
        "layout": "raster",
        "pool": "last",
        "init": "normal",
        "origin": "conv",
        "update_at": "first",
    },
}
PRESETS["published"] = {**PRESETS["described"], "second_memory": True}
"""Name -> settings for `attach`. fast: the defaults. described: the published order of operations, with all
flows as the article's text says; its memory is ResNet50's at 224 px, `described_shape` gives that of other
networks. published: what its code does (most blocks read a second memory)."""

CHOICES: dict[str, Sequence[str]] = {
    "activation": tuple(ACTIVATIONS),
    "write": ("none", "sample", "batch"),
    "readers": ("block", "all"),
    "init": ("zero", "normal"),
    "arm": tuple(ARMS),
    "layout": ("aligned", "raster"),
    "pool": ("first", "last"),
    "rule": ("overwrite", "residual"),
    "carry": ("weights", "ema"),
    "origin": ("free", "conv"),
    "update_at": ("last", "first"),
}


def described_shape(model: nn.Module, example_input: Tensor) -> Shape:
    """The memory that the article's text gives a network.

    Rows and columns of the smallest map that a layer reads, and as many numbers as the image has pixels:
    7 x 7 x 1,024 for ResNet50 (which the published run kept at stem stride 1, where 14 x 14 is smallest),
    14 x 14 x 256 for VGG16, at 224 px. Fully connected networks have a vector; the article gives no length,
    so it is the longest that fits (half of the shortest input).
    """
    found, _ = readable(model, dry_run(model, example_input))
    if not found:
        raise AttachError("no layer of this network can read memory.")
    rows, columns = min((r.grid for r in found), key=math.prod)
    if all(r.grid == (1, 1) for r in found):
        return 1, 1, min(r.limit for r in found)
    return rows, columns, max(1, math.prod(example_input.shape[2:]) // (rows * columns))


def checked(
    memory_shape: Sequence[int],
    update_width: int,
    kernel_size: int,
    update_every: int | None,
    settings: Mapping[str, str],
) -> Shape:
    """The memory shape as a tuple. Raises AttachError for values that no network could take."""
    for name, value in settings.items():
        if value not in CHOICES[name]:
            raise AttachError(unknown(name, value, CHOICES[name]))
    if len(memory_shape) != 3 or any(type(n) is not int or n < 1 for n in memory_shape):
        raise AttachError(
            f"memory_shape is {list(memory_shape)}; it must be three positive integers: rows, columns, "
            "channels, such as [4, 4, 16]."
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise AttachError(f"kernel_size is {kernel_size}; it must be odd and positive: 1, 3, 5...")
    if update_width < 1:
        raise AttachError(f"update_width is {update_width}; it must be 1 or more.")
    if update_every is not None and update_every < 1:
        raise AttachError(f"update_every is {update_every}; it must be 1 or more, or None.")
    rows, columns, channels = memory_shape
    return rows, columns, channels


def check_conv(arm: str, carry: str) -> None:
    """Refuse what the published form of memory cannot be."""
    if arm not in ("aim", "no_update", "frozen") or carry != "weights":
        raise AttachError(
            f"origin: conv cannot be combined with arm {arm} and carry: {carry}; it knows the arms aim, "
            "no_update and frozen, and carry: weights. Use origin: free."
        )


def check_arm(arm: str, plan: Plan, write: str, rule: str, carry: str) -> None:
    """Refuse arms that would not be what their name says."""
    if plan.dense and ARMS[arm].layout:
        raise AttachError(
            f"arm {arm} asks what position alone does; this network has no positions. Leave this arm out."
        )
    if arm == "shuffled" and write != "sample":
        raise AttachError(
            f"arm shuffled with write: {write} has nothing to shuffle: all images share one memory. Use "
            "write: sample, or leave this arm out."
        )
    if arm == "reset" and write == "none":
        raise AttachError("arm reset with write: none is arm frozen. Use write: sample or batch.")
    if carry == "ema" and rule == "residual" and write != "none":
        raise AttachError(
            "carry: ema with rule: residual adds what it carries again and again, without bound. Use "
            "rule: overwrite, or carry: weights."
        )


def check_checkpointing(plan: Plan, *traces: Trace | None) -> None:
    """Refuse networks that run a layer of the plan again during backward, when the memory is another."""
    names = dict.fromkeys([*(r.name for r in plan.readers), *(u.name for u in plan.updates)])
    for trace in traces:
        calls = {} if trace is None else trace.calls
        again = [n for n in names if any(call.checkpointed for call in calls.get(n, []))]
        if again:
            more = f" and {len(again) - 1} more" if len(again) > 1 else ""
            raise AttachError(
                f"activation checkpointing (torch.utils.checkpoint) runs {again[0]}{more} again during "
                "backward, when the memory is another: not supported. Switch checkpointing off, or name "
                "readers that lie outside it, with write: none."
            )
