"""Which layers of a network can read a memory, and why the others cannot: from a dry run alone.

Readers are Conv2d and Linear layers whose input is a batch of features in their places. Layers that see
features elsewhere (windows folded into the batch or cut out of a map, channels in the place of positions)
do not read: memory would be laid over the wrong positions. Learned on torchvision's and timm's networks.
Legend: B images, H x W positions, N tokens, F feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from aim_tune.addons.dry_run import BATCH, Call, Trace
from aim_tune.addons.memory.layout import token_grid
from aim_tune.errors import AttachError, unknown

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
LINEAR_LAYOUTS = {2: "flat", 3: "tokens", 4: "map_last"}
"""Dimensions of a Linear layer's input -> how its features come (see UpdateBlock)."""

NO_BATCH = "its input is not a batch of images, tokens or vectors (windows; or batch_first=False)"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer that can read memory."""

    name: str
    kind: str
    """Conv2d or Linear."""
    grid: tuple[int, int]
    """Height and width of its input; (1, 1) in a dense network."""
    channels: int
    """Feature channels of its input."""
    start: int
    """When it runs, in the order of the dry run."""
    buckets: int = 0
    """Memory channels it reads beside the feature channels."""
    second: bool = False
    """Whether it reads the published design's second memory, which nothing writes."""

    @property
    def limit(self) -> int:
        """Most memory channels it may read: half as many as it has features, at least one."""
        return max(1, self.channels // 2)


def readable(model: nn.Module, trace: Trace) -> tuple[list[Reader], list[tuple[str, str]]]:
    """All layers that can read, in the order they run, and the others with the reason."""
    found, skipped = [], []
    maps = _maps(model, trace)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            calls = trace.calls.get(name, [])
            reason = _reason_against(module, calls) or _misplaced(module, calls[0], maps)
            if reason:
                skipped.append((name, reason))
            else:
                found.append(_reader(name, module, calls[0]))
    found, alike = _without_windows(model, found, skipped)
    skipped += alike
    if any(r.grid != (1, 1) for r in found):  # then layers without positions have nothing to read
        skipped += [(r.name, "its input has one position") for r in found if r.grid == (1, 1)]
        found = [r for r in found if r.grid != (1, 1)]
    return sorted(found, key=lambda r: r.start), skipped


def _without_windows(
    model: nn.Module, found: Sequence[Reader], skipped: Sequence[tuple[str, str]]
) -> tuple[list[Reader], list[tuple[str, str]]]:
    """Readers without those that see one window only at this image size, and these with the reason:
    elsewhere in the network, layers of the same part of the same class see windows folded into the batch."""

    def kind(name: str) -> tuple[type, str]:
        parent, _, own = name.rpartition(".")
        return type(model.get_submodule(parent)), own

    windowed = {kind(name) for name, reason in skipped if reason == NO_BATCH}
    windowed = {k for k in windowed if k[0] not in _CONTAINERS}
    alike = [r for r in found if kind(r.name) in windowed]
    reason = "its like elsewhere in this network see windows folded into the batch"
    return [r for r in found if r not in alike], [(r.name, reason) for r in alike]


def named(
    names: Sequence[str], found: Sequence[Reader], skipped: Sequence[tuple[str, str]]
) -> list[Reader]:
    """The readers of these names, in the order they run. Raises AttachError for others, with the reason."""
    by_name, reasons = {r.name: r for r in found}, dict(skipped)
    for name in names:
        if name in reasons:
            raise AttachError(
                f"readers: {name} cannot read memory: {reasons[name]}. Leave it out, or take one of "
                f"{', '.join(list(by_name)[:5])}..."
            )
        if name not in by_name:
            raise AttachError(unknown("layer in readers", name, list(by_name)))
    if not names:
        raise AttachError("readers is an empty list. Name layers, or use block or all.")
    return [r for r in found if r.name in set(names)]


def grid_of(shape: tuple[int, ...], layout: str) -> tuple[int, int]:
    """Height and width of features of this shape."""
    match layout:
        case "map":
            return shape[2], shape[3]
        case "map_last":
            return shape[1], shape[2]
        case "tokens":
            return token_grid(shape[1])[1:]
    return 1, 1


def _reason_against(module: nn.Module, calls: Sequence[Call]) -> str:
    if not calls:
        return "does not run as a module (used by a function, or an auxiliary head)"
    if len(calls) > 1:
        return f"runs {len(calls)} times in one pass"
    if type(module) not in (nn.Conv2d, nn.Linear):
        return f"is a {type(module).__name__}: only plain Conv2d and Linear layers read"
    shape = calls[0].input_shape
    if not 2 <= len(shape) <= 4 or shape[0] != BATCH:
        return (
            "its input is not a batch of images, tokens or vectors (windows; or batch_first=False)"
        )
    if isinstance(module, nn.Conv2d) and len(shape) != 4:
        return "its input is not a batch of images"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "grouped convolution"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"padding_mode is {module.padding_mode}, not zeros"
    return ""


def _maps(model: nn.Module, trace: Trace) -> set[tuple[int, int, int]]:
    """(channels, height, width) of all maps that convolutions see or give."""
    shapes = [
        shape
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        for call in trace.calls.get(name, [])
        for shape in (call.input_shape, call.output_shape)
    ]
    return {(s[1], s[2], s[3]) for s in shapes if len(s) == 4}


def _misplaced(module: nn.Module, call: Call, maps: set[tuple[int, int, int]]) -> str:
    """Why features that a Linear layer sees are not where they were in the image; "" if they are."""
    shape = call.input_shape
    positions = {h * w for _, h, w in maps if h * w > 1}
    if isinstance(module, nn.Linear) and len(shape) == 4:
        seen = (shape[1], shape[2]) in {(h, w) for _, h, w in maps}
        if not seen and shape[1] * shape[2] in positions:
            return "its input is cut into windows: positions are not where they belong"
    if isinstance(module, nn.Linear) and len(shape) == 3:
        tokens = {n + front for n in positions for front in (0, 1)}
        if shape[1] in {c for c, _, _ in maps} - tokens:
            return "its input is transposed: it mixes positions, not channels"
    return ""


def _reader(name: str, module: nn.Module, call: Call) -> Reader:
    shape = call.input_shape
    conv = isinstance(module, nn.Conv2d)
    return Reader(
        name=name,
        kind="Conv2d" if conv else "Linear",
        grid=grid_of(shape, "map" if conv else LINEAR_LAYOUTS[len(shape)]),
        channels=shape[1] if conv else shape[-1],
        start=call.start,
    )
