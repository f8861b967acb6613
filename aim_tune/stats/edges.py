"""Does the search space cut an arm short? Chosen values that sit at one end of a range, over blocks.

An arm whose best lies beyond a range was not tuned, and "better" than it says little. In a block, a
setting that does not matter is chosen like any of the n drawn values; the warning needs (1) a drift of
the chosen values away from the drawn ones that chance reaches in less than ALPHA of studies (normal
tail, all settings and both ends together) and (2) their median in the outer quarter of the range; at an
end that explore has cut, in the margin beyond all that was good there. Arms share their draws and are
not counted apart. How often it fires by chance: benchmarks/self_test.py, case
`irrelevant`. It sees what matters most; where several settings share the loss, few draws hide an edge.
Choices have no ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from statistics import NormalDist, fmean, median
from typing import TypeAlias

from aim_tune.ledger import History, Training
from aim_tune.spec.space import Domain, IntUniform, Uniform
from aim_tune.spec.study import Study
from aim_tune.stats.narrow import MARGIN, block_ranges

ALPHA = 0.10
"""Chance of a drift in an arm for which no setting matters."""
OUTER = 0.25
"""Share of the range (of its logarithm where it is logarithmic) that counts as an end."""

Range: TypeAlias = Uniform | IntUniform


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An arm that keeps choosing one end of a range."""

    arm: str
    setting: str
    end: str
    """low or high."""
    limit: float
    """The end itself."""
    median: float
    """Of the values chosen in the blocks."""
    drift: float
    """How far the chosen values lie from the drawn ones, in standard errors, away from the middle."""
    blocks: int
    """Blocks that were looked at."""
    narrowed: bool = False
    """Whether explore has set this end; the study allowed more."""


def edges(study: Study, history: History, blocks: Sequence[int]) -> tuple[Edge, ...]:
    """The warnings over `blocks`, by setting and arm."""
    ranges = {k: d for k, d in study.shared.items() if isinstance(d, (Uniform, IntUniform))}
    drawn_from = block_ranges(study, history)
    least = NormalDist().inv_cdf(1 - ALPHA / (2 * len(ranges))) if ranges else 0.0
    drawn = _drawn(history, blocks)
    found = [
        _edge(name, ranges[name], drawn_from[name], arm, drawn.get(arm, ()), least)
        for name in sorted(ranges)
        for arm in study.arms
    ]
    return tuple(edge for edge in found if edge is not None)


Drawn: TypeAlias = Sequence[tuple[Training, Sequence[Training]]]
"""Per block the twin that an arm chose, and all its twins that have a score."""


def _drawn(history: History, blocks: Sequence[int]) -> Mapping[str, Drawn]:
    twins: dict[tuple[str, int], list[Training]] = {}
    wanted = set(blocks)
    for row in history.rows("twin"):
        if row.block in wanted and row.score is not None:
            twins.setdefault((row.arm, row.block or 0), []).append(row)
    chosen: dict[str, list[tuple[Training, Sequence[Training]]]] = {}
    for (arm, _), rows in twins.items():
        best = max(rows, key=lambda t: (t.score or 0.0, -t.index))
        chosen.setdefault(arm, []).append((best, rows))
    return chosen


def _edge(
    name: str, whole: Range, domain: Domain, arm: str, drawn: Drawn, least: float
) -> Edge | None:
    """The warning for one arm and setting, or None. `domain` is what the blocks drew from, `whole` what
    the study allows."""
    assert isinstance(domain, (Uniform, IntUniform)), "a range is narrowed to a range"
    moved, variance, values = 0.0, 0.0, []
    for best, rows in drawn:
        places = [share_of_range(whole, t.point.shared[name]) for t in rows]
        value, mean = best.point.shared[name], fmean(places)
        moved += share_of_range(whole, value) - mean
        variance += fmean((place - mean) ** 2 for place in places)
        values.append(float(value))
    high = moved > 0
    if not variance or abs(moved) < least * variance**0.5:
        return None
    end, own = (domain.high, whole.high) if high else (domain.low, whole.low)
    beyond = abs(share_of_range(whole, end) - share_of_range(whole, median(values)))
    if beyond > (OUTER if end == own else MARGIN):
        return None
    return Edge(
        arm=arm,
        setting=name,
        end="high" if high else "low",
        limit=float(end),
        median=float(f"{median(values):.6g}"),
        drift=float(f"{abs(moved) / variance**0.5:.6g}"),
        blocks=len(values),
        narrowed=end != own,
    )


def share_of_range(domain: Range, value: float) -> float:
    """Where a value lies between the ends: 0 to 1, in logarithms where the range is logarithmic.

    >>> round(share_of_range(Uniform(1e-3, 1e-1, log=True), 1e-2), 6)
    0.5
    """
    low, high = float(domain.low), float(domain.high)
    if domain.log:
        return log(value / low) / log(high / low)
    return (value - low) / (high - low)
