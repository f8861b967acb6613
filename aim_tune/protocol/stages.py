"""A stage: a run of requests of one kind, of which number i may be asked once results 0..i-lag are told.

Knows the order of asking and telling and how the scores of several arms become one number. Knows no
study and no sampler: what is proposed, where it stands and what follows is told to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aim_tune.ledger import Training
from aim_tune.spec.request import Ladder, Point

Scores = Mapping[str, float | None]
"""Arm -> validation accuracy; None where the training has no usable score."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the protocol learns of one training."""

    score: float | None
    """Validation accuracy reached; None where there is no usable score."""
    pruned: bool = False
    """Whether it was ended early: its score is of a part of the training."""
    passes: tuple[float, ...] = ()
    """Validation accuracy at each pass."""
    step_ms: float | None = None
    parameters: int | None = None
    device: str = ""
    """Type of device that it ran on: step times of different types are not compared."""

    @classmethod
    def of(cls, training: Training) -> Told:
        """From the ledger's row of a training that has ended."""
        result = training.result
        assert result is not None, f"{training.position} {training.arm} has not ended"
        return cls(
            score=known(training.score),
            pruned=training.status == "pruned",
            passes=tuple(m.val_accuracy for m in training.curve),
            step_ms=None if len(training.devices) > 1 else known(result.step_ms),
            parameters=result.parameters or None,
            device=training.device,
        )

    @property
    def whole(self) -> float | None:
        """The score of a training that was not ended early; else None."""
        return None if self.pruned else self.score


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
        self.told: list[Mapping[str, Told]] = [{} for _ in range(size)]
        """By number, everything that was told; empty until then."""
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

    def ladders(self, number: int) -> Mapping[str, Ladder]:
        """Where the trainings of a request that was asked end early; nowhere but in explore."""
        return {}

    def tell(self, number: int, told: Mapping[str, Told]) -> None:
        """Take one result, in any order."""
        self.told[number] = told
        self.results[number] = {arm: one.score for arm, one in told.items()}
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
