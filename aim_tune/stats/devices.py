"""Times by device type: what a step takes on one GPU says nothing about a step on another.

A cluster may have GPUs (or CPUs) of several types, and by chance one arm may sit more on the faster ones. So
a time is summarised within one type, and a ratio within requests in which both arms ran on that type. A
training that a fault moved to another type has no time: part of it is of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aim_tune.ledger import History, Training
from aim_tune.spec.study import BASELINE


@dataclass(frozen=True, kw_only=True)
class DeviceTimes:
    """What was timed on one type of device."""

    trainings: int
    """That ran there from start to end."""
    step_ms: Mapping[str, float] = field(default_factory=dict)
    """Arm -> median over trainings of the median step time; an arm that did not run there is missing."""
    step_ratio: Mapping[str, float] = field(default_factory=dict)
    """Arm -> its step time over the baseline's: median over the requests in which both ran there, or,
    where there is none, of the medians. Without the baseline itself."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DeviceTimes:
        """From its plain JSON form."""
        return cls(**value)


def device_counts(rows: Sequence[Training]) -> dict[str, int]:
    """Device type -> trainings that ran there, the type that most ran on first; ties by name."""
    counts = Counter(t.device for t in rows if t.device)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def on_one_type(rows: Sequence[Training]) -> list[Training]:
    """Those of `rows` whose times may be set side by side: on the type that most of them ran on."""
    counts = device_counts(rows)
    return [t for t in rows if t.device == next(iter(counts), None)]


def moved(rows: Sequence[Training]) -> int:
    """Trainings of which parts ran on different types."""
    return sum(len(t.devices) > 1 for t in rows)


def device_times(rows: Sequence[Training], timed: Sequence[Training]) -> dict[str, DeviceTimes]:
    """Device type -> its share of `rows` and what those of `timed` took there."""
    return {
        device: _times(count, [t for t in timed if t.device == device])
        for device, count in device_counts(rows).items()
    }


def measured_on(history: History) -> str | None:
    """Type of device on which match/0 has measured step times; None without that request."""
    return next((t.device for t in history.rows("match") if t.device), None)


def _times(trainings: int, timed: Sequence[Training]) -> DeviceTimes:
    by_arm: dict[str, dict[str, float]] = {}
    for t in timed:
        if t.result and t.result.step_ms:
            by_arm.setdefault(t.arm, {})[t.position] = t.result.step_ms
    medians = {arm: _median(times.values()) for arm, times in by_arm.items()}
    base = by_arm.get(BASELINE, {})
    ratios = {a: _ratio(times, base) for a, times in by_arm.items() if base and a != BASELINE}
    return DeviceTimes(trainings=trainings, step_ms=medians, step_ratio=ratios)


def _ratio(own: Mapping[str, float], base: Mapping[str, float]) -> float:
    pairs = [own[position] / base[position] for position in own.keys() & base.keys()]
    return _median(pairs or [np.median([*own.values()]) / np.median([*base.values()])])


def _median(values: Iterable[float]) -> float:
    """To six significant digits."""
    return float(f"{np.median([*values]):.6g}")
