"""The verb: what attaching a memory to a network would do.

Prints the report of `attach` (readers, update points, what is left out and why, parameters, FLOPs, bytes) for
any network of the backbone table or of timm and, with --arms, what every arm of a study would cost. Weights
are not made: everything runs on meta tensors. Starts light.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aim_tune import options
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError, unknown

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
"""In front of a name: a network of timm."""
MEASURED = {
    "step_ms": "as wide as a study measures",
    "seconds": "as many steps as a study measures",
}


def describe(args: argparse.Namespace) -> str:
    """The text that is printed. Raises UserError for what cannot be built."""
    import torch

    from aim_tune.addons.memory import PRESETS, attach, keras_count

    if args.preset not in PRESETS:
        raise UserError(unknown("preset", args.preset, list(PRESETS)))
    shape = (args.channels, args.image, args.image)
    with torch.device("meta"):
        plain = _backbone(args.network, args.setting, classes=args.classes, image_shape=shape)
        settings = _settings(args, plain, shape)
        example = torch.zeros(1, *shape)
        model, report = attach(
            copy.deepcopy(plain), example_input=example, arm=args.arm, **settings
        )
        lines = [
            f"{args.network}, {args.classes} classes, images {shape[0]}x{shape[1]}x{shape[2]}, "
            f"preset {args.preset}",
            str(report),
            _keras(keras_count(model), keras_count(plain)),
        ]
        if args.preset != "fast" and args.network == "resnet50":
            lines.append(_published(args.preset, args.classes))
        if args.arms:
            lines += ["", *_arms(plain, shape, settings)]
    return "\n".join(lines)


def _keras(counts: tuple[int, int], plain: tuple[int, int]) -> str:
    return (
        f"as Keras counts (with the statistics of batch norms): {counts[0]:,} parameters, "
        f"{counts[1]:,} trainable; without memory {plain[0]:,}"
    )


def _published(preset: str, classes: int) -> str:
    """The reference: Keras' ResNet50 has biases that torchvision's has not, and stem stride 1 here."""
    import torch

    from aim_tune.addons.memory import PRESETS, attach, keras_count

    stem, shape = ["stem_stride=1"], (3, 224, 224)
    plain = _backbone("keras_resnet50", stem, classes=classes, image_shape=shape)
    model = attach(copy.deepcopy(plain), example_input=torch.zeros(1, *shape), **PRESETS[preset])[0]
    return "the article's own network (keras_resnet50 --setting stem_stride=1), " + _keras(
        keras_count(model), keras_count(plain)
    )


def _settings(
    args: argparse.Namespace, plain: nn.Module, shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Settings of `attach`: those of the preset, then those that were given one by one."""
    import torch

    from aim_tune.addons.memory import PRESETS, described_shape

    settings: dict[str, Any] = dict(PRESETS[args.preset])
    if args.preset == "described":
        settings["memory_shape"] = described_shape(plain, torch.zeros(1, *shape))
    if args.memory:
        settings["memory_shape"] = args.memory
    if args.readers:
        names = args.readers
        settings["readers"] = names[0] if names[0] in ("block", "all") else names
    for name in ("write", "update_every"):
        if value := getattr(args, name):
            settings[name] = value
    return settings


def _arms(plain: nn.Module, shape: tuple[int, int, int], settings: dict[str, Any]) -> Iterator[str]:
    """One line per arm: parameters, FLOPs of one image, and how far they are from those of aim."""
    from aim_tune.addons import ADDONS
    from aim_tune.addons.memory import build
    from aim_tune.arms import arm_cost

    row = ADDONS["memory"]
    given = {"image_shape": shape, "seed": 0, **settings}
    aim = arm_cost(build(copy.deepcopy(plain), arm="aim", **given), shape)
    yield f"{'arm':<13}{'parameters':>14}{'to aim':>9}{'FLOPs an image':>18}{'to aim':>9}"
    for arm in ("baseline", *row.arms):
        measured = MEASURED.get(row.matched.get(arm, ""))
        if measured:
            yield f"{arm:<13}  {measured}, to match {row.matched[arm]} of aim"
            continue
        try:
            net = copy.deepcopy(plain)
            cost = arm_cost(net if arm == "baseline" else build(net, arm=arm, **given), shape)
        except UserError as error:
            yield f"{arm:<13}  cannot be built: {error}"
            continue
        to = [f"{100 * (a / b - 1):+.2f} %" for a, b in
              ((cost.parameters, aim.parameters), (cost.flops, aim.flops))]  # fmt: skip
        yield f"{arm:<13}{cost.parameters:>14,}{to[0]:>9}{cost.flops:>18,}{to[1]:>9}"


def _backbone(name: str, pairs: Sequence[str], **given: Any) -> nn.Module:
    from aim_tune.models import BACKBONES

    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), pairs, **given)
    if name not in BACKBONES:
        hint = f"; for timm's write {TIMM}{name}" if name else ""
        raise UserError(unknown("network", name, sorted(BACKBONES)) + hint)
    row = BACKBONES[name]
    settings = dict(row.fixed)
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in row.settings:
            raise UserError(unknown(f"setting of {name}", key, sorted(row.settings)))
        settings[key] = int(value) if row.settings[key].kind == "int" else value
    return row.load()(**given, **settings)


def _timm(
    name: str, pairs: Sequence[str], *, classes: int, image_shape: tuple[int, int, int]
) -> nn.Module:
    """A network of timm with random weights; `pairs` are keyword arguments of its builder."""
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"{TIMM}{name} needs the package timm, which is not installed here: pip install timm"
        ) from error
    if name not in timm.list_models():
        raise UserError(unknown("network of timm", name, timm.list_models()))
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": image_shape[0]}
    for pair in pairs:
        key, _, value = pair.partition("=")
        settings[key] = int(value) if value.isdigit() else value
    try:
        return timm.create_model(name, pretrained=False, **settings)
    except TypeError as error:
        raise UserError(f"timm cannot build {name} with {settings}: {error}") from error


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m aim_tune.describe",
        description="Shows what attaching a memory to a network would do. Takes seconds.",
    )
    made.add_argument(
        "network", metavar="NET", help="resnet50, mlp, vit_b_16, timm:convnext_atto..."
    )
    made.add_argument("--preset", default="fast", help="fast, described or published")
    made.add_argument("--arm", default="aim", help="aim, no_update, frozen...")
    made.add_argument("--arms", action="store_true", help="also what every arm of a study costs")
    made.add_argument("--memory", type=int, nargs=3, metavar=("ROWS", "COLUMNS", "CHANNELS"))
    made.add_argument("--write", choices=("none", "sample", "batch"))
    made.add_argument("--readers", nargs="+", metavar="NAME", help="block, all or names of layers")
    made.add_argument("--update-every", type=int, metavar="BLOCKS", help="blocks between updates")
    made.add_argument("--image", type=int, default=224, help="side, pixels")
    made.add_argument("--channels", type=int, default=3)
    made.add_argument("--classes", type=int, default=100)
    made.add_argument(
        "--setting",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="of the network: stem_stride=1",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 where the network or the settings are impossible."""
    args = parser().parse_args(argv)
    try:
        print(describe(args))
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
