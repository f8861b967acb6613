"""A stage: a run of requests of one kind, of which number i may be asked once results 0..i-lag are told.

Knows the order of asking and telling and how the scores of several arms become one number. Knows no
study and no sampler: what is proposed, where it stands and what follows is told to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from aim_tune.spec.request import Point

Scores = Mapping[str, float | None]
"""Arm -> validation accuracy; None where the training has no usable score."""
Propose = Callable[[int, Sequence[Scores | None]], Mapping[str, Point]]
"""Number of the trial and the results so far -> point per arm."""
Place = Callable[[int], tuple[str, str]]
"""Number of the trial -> (what its streams are named after, its position)."""


class Stage:
    """A run of requests of one kind."""

    def __init__(
        self,
        *,
        kind: str,
        block: int,
        order: int,
        size: int,
        lag: int | None,
        propose: Propose,
        place: Place,
    ) -> None:
        self.kind = kind
        """explore, finals, twin or confirm."""
        self.block = block
        """0 in explore."""
        self.order = order
        """Place of its first request in the canonical order of the whole study."""
        self.size = size
        self.results: list[Scores | None] = [None] * size
        """By number; None until told."""
        self.points: list[Mapping[str, Point]] = []
        self.place = place
        self._told_prefix = 0
        self._told_count = 0
        self._lag = size if lag is None else lag
        self._propose = propose

    @property
    def asked(self) -> int:
        """How many requests were asked, hence the number of the next."""
        return len(self.points)

    @property
    def ready(self) -> bool:
        """Whether the next request may be asked."""
        return self.asked < self.size and self._told_prefix > self.asked - self._lag

    @property
    def known(self) -> list[Scores]:
        """The results that were told, in order."""
        return [scores for scores in self.results if scores is not None]

    @property
    def complete(self) -> bool:
        """Whether all results are told."""
        return self._told_count == self.size

    def ask(self) -> Mapping[str, Point]:
        """The points of the next request."""
        self.points.append(self._propose(self.asked, self.results))
        return self.points[-1]

    def tell(self, number: int, scores: Scores) -> None:
        """Take one result, in any order."""
        self.results[number] = scores
        self._told_count += 1
        while self._told_prefix < self.size and self.results[self._told_prefix] is not None:
            self._told_prefix += 1


def known(score: float | None) -> float | None:
    """The score, or None where it is not a finite number."""
    return None if score is None or not math.isfinite(score) else float(score)


def mean(scores: Sequence[float | None]) -> float | None:
    """The mean; None where one is missing (a mean over fewer arms could not be compared)."""
    values = [score for score in scores if score is not None]
    return sum(values) / len(values) if len(values) == len(scores) else None


def argmax(values: Sequence[float | None]) -> int:
    """Index of the first largest value; 0 where there is none."""
    ranked = [rank(value) for value in values]
    return ranked.index(max(ranked))


def rank(value: float | None) -> float:
    """The value as something to sort by: a missing one is the worst."""
    return -math.inf if value is None else value
