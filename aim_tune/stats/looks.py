"""When a study may be judged, and at which level: at its end, at planned looks, or at any time.

Planned looks (`protocol.looks: [8, 12, 20]`): the t interval, at every look at one level chosen so that all
looks together err in 5 % (Pocock 1977, recalibrated for t with so few blocks: 8, 12, 20 give 2.2 %). The
intervals hold at whatever look the study ends. Between looks, before the end of a plan, and after blocks
were added without one: anytime-valid intervals. An end by the budget has not seen the results: it is judged
like the planned one. A look takes the first so many blocks, whatever else is
done by then, so the answer does not depend on the number of slots.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from aim_tune.ledger import History
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import blocks_to_run
from aim_tune.stats.paired import ADDED, ALPHA

DRAWS = 400_000
"""Simulated studies behind a level: repeated draws agree within 0.0002."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """Blocks that are judged together, and how."""

    blocks: tuple[int, ...]
    alpha: float = ALPHA
    """Level of every interval: the error of one look."""
    anytime: bool = False
    """Whether somebody may look again without a plan."""
    interim: bool = False
    """Whether the plan goes on whatever is seen."""
    number: int | None = None
    """Of the planned look, from 1; None: no looks were planned."""
    last: bool = True
    """Whether nothing is planned after it: an open end stands."""


def looks_of(study: Study, history: History, blocks: tuple[int, ...]) -> Iterator[Look]:
    """The looks that the whole `blocks` allow, in order: the first that decides counts, else the last."""
    end = blocks_to_run(study, history)
    interim = len(blocks) < end
    if history.blocks is not None:
        yield Look(blocks=blocks, alpha=ADDED, anytime=True, interim=interim)
        return
    sizes = tuple(study.protocol.looks)
    reached = [size for size in sizes if blocks[:size] == tuple(range(size))]
    level = look_level(sizes) if reached else ALPHA
    for number, size in enumerate(reached, start=1):
        yield Look(
            blocks=blocks[:size], alpha=level, number=number, last=not interim and size == end
        )
    if interim:
        yield Look(blocks=blocks, anytime=True, interim=True)
    elif end not in sizes:  # no looks were planned, or the budget ended the study between two
        yield Look(blocks=blocks, alpha=level)


@lru_cache(maxsize=16)
def look_level(looks: Sequence[int], alpha: float = ALPHA) -> float:
    """The level of each look at which all together err in `alpha`; normal differences, seed fixed.

    >>> round(look_level((8, 12, 20)), 3)
    0.022
    """
    rng = np.random.default_rng(0)
    total, squares, least = np.zeros(DRAWS), np.zeros(DRAWS), np.ones(DRAWS)
    before = 0
    for size in looks:
        more = size - before
        step = rng.normal(0, more**0.5, DRAWS)
        total += step
        squares += step**2 / more + (rng.chisquare(more - 1, DRAWS) if more > 1 else 0)
        variance = (squares - total**2 / size) / (size - 1) / size
        least = np.minimum(least, 2 * stats.t.sf(abs(total) / size / variance**0.5, size - 1))
        before = size
    return float(np.quantile(least, alpha))
