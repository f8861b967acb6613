"""Where memory is read and rewritten in a network: decided from a dry run, before anything is changed.

Readers are Conv2d and Linear layers; a *block* is the innermost module of a class of its own that has
two or more of them. Memory is rewritten at the end of each run of blocks of one resolution; where the
resolution never changes (dense and token networks), after each quarter of the blocks, or after every n
blocks. The rules were learned on torchvision's networks; what is left out is reported with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn

from aim_tune.addons.dry_run import BATCH, Call, Trace
from aim_tune.addons.memory.layout import buckets
from aim_tune.addons.memory.readable import LINEAR_LAYOUTS, Reader, grid_of, named, readable
from aim_tune.errors import AttachError

PARTS = 4
"""In how many parts a network of one resolution is cut by its updates."""

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Update:
    """A module after which memory is rewritten from its output."""

    name: str
    layout: str
    """How its output comes: map, map_last, tokens or flat (see UpdateBlock)."""
    features: int
    grid: tuple[int, int]
    start: int
    end: int
    late_change: bool
    """Whether the network changes the output in place afterwards."""
    buckets: int = 0
    """Memory channels on its output's grid."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything `attach` will do."""

    memory_shape: Shape
    """Rows, columns, channels as used: (1, 1, numbers) in a dense network."""
    readers: tuple[Reader, ...]
    skipped: tuple[tuple[str, str], ...]
    """(layer, why it cannot read)."""
    updates: tuple[Update, ...]
    dropped: tuple[tuple[str, str], ...]
    """(module, why memory is not rewritten after it)."""

    @property
    def dense(self) -> bool:
        """Whether the network has no positions: memory is then one vector."""
        return all(r.grid == (1, 1) for r in self.readers)


def make_plan(
    model: nn.Module,
    trace: Trace,
    memory_shape: Shape,
    *,
    readers: str | Sequence[str],
    write: str,
    layout: str = "aligned",
    update_at: str = "last",
    update_every: int | None = None,
    second_memory: bool = False,
) -> Plan:
    """The plan for a network. Raises AttachError where nothing can read or be rewritten, or where the
    memory is too large for a reader."""
    found, skipped = readable(model, trace)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
        raise AttachError(f"no layer of this network can read memory ({reasons or 'it has none'}).")
    dense = all(r.grid == (1, 1) for r in found)
    if dense:
        memory_shape = (1, 1, math.prod(memory_shape))
    blocks = _blocks(model, trace, found)
    if isinstance(readers, str):
        chosen = found if readers == "all" or not blocks else _first_of_each(blocks, found)
    else:
        chosen = named(readers, found, skipped)
    chosen = [replace(r, buckets=buckets(memory_shape, *r.grid, layout)) for r in chosen]
    if second_memory:
        heads = [u[0] for u in _groups(_units(model, trace, blocks, found), update_every)]
        chosen = [replace(r, second=not _runs_in(r, heads)) for r in chosen]
    if layout != "coordinates":
        _check_size(memory_shape, chosen, dense, layout)
    updates, dropped = (
        _updates(model, trace, blocks, found, chosen, update_at, update_every)
        if write != "none"
        else ([], [])
    )
    updates = [replace(u, buckets=buckets(memory_shape, *u.grid, layout)) for u in updates]
    if write != "none" and not updates:
        raise AttachError(
            f"write: {write} has no place here: no layer reads memory after it could be rewritten. "
            "Use write: none, readers: all, or a deeper network."
        )
    return Plan(
        memory_shape=memory_shape,
        readers=tuple(chosen),
        skipped=tuple(skipped),
        updates=tuple(updates),
        dropped=tuple(dropped),
    )


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _inside(name: str, block: str) -> bool:
    return name.startswith(f"{block}.")


def _blocks(model: nn.Module, trace: Trace, found: Sequence[Reader]) -> list[str]:
    """Names of the blocks in the order they run; [] where the network has none."""
    layers = [
        n
        for n, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and n in trace.calls
    ]
    names = [
        name
        for name, module in model.named_modules()
        if name
        and type(module) not in _CONTAINERS
        and trace.once(name)
        and sum(_inside(layer, name) for layer in layers) >= 2
        and any(_inside(r.name, name) for r in found)
    ]
    innermost = [n for n in names if not any(_inside(other, n) for other in names)]
    if len(innermost) < 2:  # a wrapper around the whole network is not a block
        return []
    return sorted(innermost, key=lambda n: trace.calls[n][0].start)


def _first_of_each(blocks: Sequence[str], found: Sequence[Reader]) -> list[Reader]:
    return [next(r for r in found if _inside(r.name, block)) for block in blocks]


def _check_size(memory_shape: Shape, readers: Sequence[Reader], dense: bool, layout: str) -> None:
    """Refuse a memory that would outweigh the features of a layer that reads it."""
    tight = [r for r in readers if r.buckets > r.limit]
    if not tight:
        return
    rows, columns, channels = memory_shape
    fits = channels
    while fits and any(buckets((rows, columns, fits), *r.grid, layout) > r.limit for r in readers):
        fits -= 1
    worst = max(tight, key=lambda r: r.buckets / r.channels)
    where = "a vector" if dense else f"a {worst.grid[0]}x{worst.grid[1]} map"
    size = f"{channels} numbers" if dense else f"{list(memory_shape)}"
    advice = "Use fewer rows and columns, or other readers."
    if fits:
        advice = f"Use at most {f'{fits} numbers' if dense else [rows, columns, fits]}, or other readers."
    raise AttachError(
        f"memory of {size} does not fit: {worst.name} (input: {where} of {worst.channels} channels) "
        f"would read {worst.buckets} memory channels, at most {worst.limit} are allowed (half its "
        f"features); {len(tight)} of {len(readers)} readers are too small. {advice}"
    )


def _updates(
    model: nn.Module,
    trace: Trace,
    blocks: Sequence[str],
    found: Sequence[Reader],
    chosen: Sequence[Reader],
    update_at: str,
    update_every: int | None,
) -> tuple[list[Update], list[tuple[str, str]]]:
    """Update points that a later reader sees, and those dropped because none does."""
    groups = _groups(_units(model, trace, blocks, found), update_every)
    last_reader = max((r.start for r in chosen if not r.second), default=-1)
    kept, dropped = [], []
    for before, group, after in zip([None, *groups], groups, [*groups[1:], None], strict=False):
        span = (before[-1].end if before else -1, after[0].start if after else trace.clock)
        point = group[0] if update_at == "first" else _widest(model, trace, group[-1], span)
        if point.end < last_reader:
            kept.append(point)
        else:
            dropped.append((point.name, "no layer reads memory after it"))
    return kept, dropped


def _units(
    model: nn.Module, trace: Trace, blocks: Sequence[str], found: Sequence[Reader]
) -> list[Update]:
    """The modules after which memory could be rewritten."""
    dense = all(r.grid == (1, 1) for r in found)
    names = blocks or _ends_of_layers(model, trace, found)
    units = [u for u in (_update(model, trace, n) for n in names) if u is not None]
    return [u for u in units if dense or u.layout != "flat"]


def _runs_in(reader: Reader, units: Sequence[Update]) -> bool:
    return any(u.start < reader.start < u.end for u in units)


def _ends_of_layers(model: nn.Module, trace: Trace, found: Sequence[Reader]) -> list[str]:
    """In a network without blocks: per reader, the last module that keeps the form of its output."""
    leaves = [n for n, m in model.named_modules() if n and not any(m.children()) and trace.once(n)]
    ends = []
    for reader, following in zip(found, [*found[1:], None], strict=True):
        shape = trace.calls[reader.name][0].output_shape
        until = following.start if following else trace.clock
        span = [n for n in leaves if reader.start <= trace.calls[n][0].start < until]
        same = [n for n in span if trace.calls[n][0].output_shape == shape]
        ends.append(max(same, key=lambda n: trace.calls[n][0].end))
    return ends


def _update(model: nn.Module, trace: Trace, name: str) -> Update | None:
    """An update after the module `name`; None where its output is not a batch of features."""
    call = trace.once(name)
    if call is None or not 2 <= len(call.output_shape) <= 4 or call.output_shape[0] != BATCH:
        return None
    layout = _layout(model, trace, name, call)
    shape = call.output_shape
    return Update(
        name=name,
        layout=layout,
        features=shape[1] if layout == "map" else shape[-1],
        grid=grid_of(shape, layout),
        start=call.start,
        end=call.end,
        late_change=call.late_change,
    )


def _layout(model: nn.Module, trace: Trace, name: str, call: Call) -> str:
    """How an output comes; a 4-D output is a channels-last map where only Linear layers made it."""
    rank = len(call.output_shape)
    if rank < 4:
        return LINEAR_LAYOUTS[rank]
    for inner, module in model.get_submodule(name).named_modules(prefix=name):
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and inner in trace.calls:
            return "map"
    linear = [
        trace.calls[inner][-1].output_shape
        for inner, module in model.get_submodule(name).named_modules(prefix=name)
        if isinstance(module, nn.Linear) and inner in trace.calls
    ]
    return "map_last" if linear and linear[-1][1:3] == call.output_shape[1:3] else "map"


def _groups(units: Sequence[Update], every: int | None) -> list[list[Update]]:
    """Runs of units of one resolution, cut into groups of `every`; if there is one resolution only and
    `every` is not given, its quarters."""
    groups = [list(group) for _, group in groupby(units, key=lambda u: u.grid)]
    if every is None and len(groups) == 1:
        every = math.ceil(len(units) / PARTS)
    if every is None:
        return groups
    return [group[i : i + every] for group in groups for i in range(0, len(group), every)]


def _widest(model: nn.Module, trace: Trace, unit: Update, span: tuple[int, int]) -> Update:
    """The outermost module around `unit` that runs between the groups before and after it and keeps
    its resolution: the whole stage rather than the inner part of its last block."""
    name = unit.name
    while "." in name:
        name = name.rpartition(".")[0]
        wider = _update(model, trace, name)
        if wider is None:
            continue  # a container that does not run itself
        inside = span[0] < wider.start and wider.end < span[1]
        if not inside or (wider.grid, wider.layout) != (unit.grid, unit.layout):
            break
        unit = wider
    return unit
