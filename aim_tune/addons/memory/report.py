"""What `attach` did to a network, as plain values and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aim_tune.addons.memory.plan import Plan


@dataclass(frozen=True, kw_only=True)
class AttachReport:
    """Readers, update points, what was left out and why, and the price."""

    arm: str
    write: str
    """none where the arm never rewrites its memory."""
    plan: Plan
    parameters: tuple[int, int]
    """Before and after; a frozen memory is not a parameter."""
    flops: tuple[int, int] | None = None
    """Forward FLOPs per image in eval mode, before and after; None: not measured. Work that the images of a
    batch share is counted for a batch of three."""
    saved_bytes: tuple[int, int] | None = None
    """Bytes per image kept for the backward pass at batch 32, before and after; None: not measured, or the
    network does not run on meta tensors in training."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Names of the layers that read, in the order they run."""
        return tuple(r.name for r in self.plan.readers)

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(layer, why it cannot read)."""
        return self.plan.skipped

    @property
    def update_points(self) -> tuple[str, ...]:
        """Names of the modules after which memory is rewritten."""
        return tuple(u.name for u in self.plan.updates)

    @property
    def dropped(self) -> tuple[tuple[str, str], ...]:
        """(module, why memory is not rewritten after it)."""
        return self.plan.dropped

    def __str__(self) -> str:
        rows, columns, channels = self.plan.memory_shape
        lines = [
            f"memory {rows}x{columns}x{channels} ({rows * columns * channels} numbers), "
            f"arm {self.arm}, write {self.write}",
            f"parameters {_change(self.parameters)}",
            f"FLOPs per image {_change(self.flops)}",
            f"bytes per image kept for backward {_change(self.saved_bytes)}",
            f"{len(self.plan.readers)} readers:",
            *(
                f"  {r.name} ({r.kind}, {r.grid[0]}x{r.grid[1]}): {r.channels} + {r.buckets} channels"
                + (", the second memory" if r.second else "")
                for r in self.plan.readers
            ),
            f"{len(self.plan.updates)} update points:",
            *(
                f"  after {u.name} ({u.grid[0]}x{u.grid[1]}, {u.features} channels)"
                for u in self.plan.updates
            ),
        ]
        if self.dropped:
            lines += ["no update after:", *_by_reason(self.dropped)]
        if self.skipped:
            lines += ["cannot read:", *_by_reason(self.skipped)]
        return "\n".join(lines)


def _by_reason(left_out: Sequence[tuple[str, str]]) -> Iterator[str]:
    """One line per reason: how many, why, and the first three names."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        more = ", ..." if len(names) > 3 else ""
        yield f"  {len(names)} because {reason}: {', '.join(names[:3])}{more}"


def _change(pair: tuple[int, int] | None) -> str:
    if pair is None:
        return "not measured"
    before, after = pair
    return f"{before:,} -> {after:,} ({100 * (after - before) / max(before, 1):+.1f} %)"
