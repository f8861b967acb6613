"""The verb: what attaching a memory to a network would do.

Prints the report of `attach` (readers, update points, what is left out and why, parameters, FLOPs) for
any network of the backbone table. Weights are not made: everything runs on meta tensors. Starts light.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError, unknown

if TYPE_CHECKING:
    from torch import nn


def describe(args: argparse.Namespace) -> str:
    """The text that is printed. Raises UserError for what cannot be built."""
    import torch

    from aim_tune.addons.memory import PRESETS, attach, keras_count

    if args.preset not in PRESETS:
        raise UserError(unknown("preset", args.preset, list(PRESETS)))
    shape = (args.channels, args.image, args.image)
    with torch.device("meta"):
        model = _backbone(args.network, args.setting, classes=args.classes, image_shape=shape)
        plain = keras_count(model)
        given: dict[str, Any] = dict(PRESETS[args.preset])
        if args.memory:
            given["memory_shape"] = args.memory
        model, report = attach(
            model, example_input=torch.zeros(1, *shape), arm=args.arm, **{**given, **_own(args)}
        )
    total, trainable = keras_count(model)
    return "\n".join(
        [
            f"{args.network}, {args.classes} classes, images {shape[0]}x{shape[1]}x{shape[2]}, "
            f"preset {args.preset}",
            str(report),
            f"as Keras counts (with the statistics of batch norms): {total:,} parameters, "
            f"{trainable:,} trainable; without memory {plain[0]:,}",
        ]
    )


def _own(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of `attach` that were given one by one."""
    return {name: value for name in ("write", "readers") if (value := getattr(args, name))}


def _backbone(name: str, pairs: Sequence[str], **given: Any) -> nn.Module:
    from aim_tune.models import BACKBONES

    if name not in BACKBONES:
        raise UserError(unknown("network", name, sorted(BACKBONES)))
    row = BACKBONES[name]
    settings = dict(row.fixed)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in row.settings:
            raise UserError(unknown(f"setting of {name}", key, sorted(row.settings)))
        settings[key] = int(value) if row.settings[key].kind == "int" else value
    return row.load()(**given, **settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the network or the settings are impossible."""
    parser = argparse.ArgumentParser(
        prog="python -m aim_tune.describe",
        description="Shows what attaching a memory to a network would do. Takes seconds.",
    )
    parser.add_argument("network", metavar="NET", help="resnet50, mlp, vit_b_16...")
    parser.add_argument("--preset", default="fast", help="fast, described or published")
    parser.add_argument("--arm", default="aim", help="aim, no_update, frozen...")
    parser.add_argument(
        "--memory", type=int, nargs=3, metavar=("ROWS", "COLUMNS", "CHANNELS"), default=None
    )
    parser.add_argument("--write", choices=("none", "sample", "batch"))
    parser.add_argument("--readers", choices=("block", "all"))
    parser.add_argument("--image", type=int, default=224, help="side, pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument(
        "--setting",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="of the network: stem_stride=1",
    )
    args = parser.parse_args(argv)
    try:
        print(describe(args))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
