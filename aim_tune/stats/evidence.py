"""From a ledger's history to arrays: whole blocks only, arms aligned, points (percent) throughout.

A block counts once all its twins and confirm pairs are done, so that partial results never favor
what finishes first. A confirm pair in which one of two arms has no test score (out of memory, three
lost attempts) is left out of that comparison, both sides, and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aim_tune.ledger import History, Training, unpack_bits
from aim_tune.spec.study import Study


@dataclass(frozen=True, kw_only=True, eq=False)
class Differences:
    """Confirm runs of two arms, paired."""

    blocks: tuple[int, ...]
    """Blocks with at least one usable pair."""
    points_B: NDArray[np.float64]
    """Mean difference per such block."""
    cells_BN: NDArray[np.float64] | None
    """Per block and test example; None where correctness per example is not recorded."""
    lost: int
    """Pairs left out."""


def whole_blocks(study: Study, history: History) -> tuple[int, ...]:
    """Blocks in which everything asked of the arms of the first pass is done, in order."""
    return _whole(study, history, study.main_arms)


def trained_arms(study: Study, history: History, blocks: tuple[int, ...]) -> tuple[str, ...]:
    """The arms that can be compared over `blocks`: those of the first pass, and each later one
    (attribution after_better) once it is done with all of them."""
    return tuple(
        arm
        for arm in study.arms
        if arm in study.main_arms or set(blocks) <= set(_whole(study, history, (arm,)))
    )


def _whole(study: Study, history: History, arms: tuple[str, ...]) -> tuple[int, ...]:
    plan = study.protocol
    done = Counter(
        (request.block, request.stage)
        for position, request in history.requests.items()
        if position in history.done and request.block is not None and arms[0] in request.arms
    )
    blocks = sorted({block for block, _ in done if block is not None})
    return tuple(
        b for b in blocks if done[b, "twin"] >= plan.twins and done[b, "confirm"] >= plan.confirm
    )


def differences(history: History, blocks: tuple[int, ...], arm: str, reference: str) -> Differences:
    """Test accuracy of `arm` minus `reference` over the confirm pairs of `blocks`."""
    kept, points, cells, lost = [], [], [], 0
    everything = _pairs(history, arm, reference)
    for block in blocks:
        pairs = everything.get(block, [])
        usable = [p for p in pairs if all(t.test_accuracy is not None for t in p)]
        lost += len(pairs) - len(usable)
        if usable:
            kept.append(block)
            points.append(100 * np.mean([_accuracy(a) - _accuracy(b) for a, b in usable]))
            cells.append(_cells(usable))
    known = [c for c in cells if c is not None]
    return Differences(
        blocks=tuple(kept),
        points_B=np.array(points, dtype=float),
        cells_BN=np.stack(known) if known and len(known) == len(cells) else None,
        lost=lost,
    )


def twin_scores(
    history: History, blocks: tuple[int, ...], arm: str, reference: str
) -> NDArray[np.float64]:
    """Validation accuracy [2, B, n] of both arms at the same shared points, points; NaN: no score."""
    scores = np.full((2, len(blocks), 0), np.nan)
    for side, name in enumerate((arm, reference)):
        rows = [t for t in history.rows("twin", name) if t.block in blocks]
        twins = max((t.index for t in rows), default=-1) + 1
        if scores.shape[2] < twins:
            more = np.full((2, len(blocks), twins - scores.shape[2]), np.nan)
            scores = np.concatenate([scores, more], axis=2)
        for t in rows:
            if t.score is not None:
                scores[side, blocks.index(t.block or 0), t.index] = 100 * t.score
    return scores


def _pairs(
    history: History, arm: str, reference: str
) -> dict[int | None, list[tuple[Training, Training]]]:
    """Block -> the two arms' trainings of its confirm pairs: of one request, or of two on the same
    streams where one arm was trained later."""
    first, second = (
        {(t.block, t.index): t for t in history.rows("confirm", name)} for name in (arm, reference)
    )
    pairs: dict[int | None, list[tuple[Training, Training]]] = {}
    for place in sorted(first.keys() & second.keys(), key=lambda p: (p[0] or 0, p[1])):
        pairs.setdefault(place[0], []).append((first[place], second[place]))
    return pairs


def _accuracy(training: Training) -> float:
    assert training.test_accuracy is not None, "only scored trainings are paired"
    return training.test_accuracy


def _cells(pairs: list[tuple[Training, Training]]) -> NDArray[np.float64] | None:
    """Mean over pairs of the difference in correctness per example; None if not recorded."""
    if any(t.correct is None for pair in pairs for t in pair):
        return None
    gaps = [_bits(a) - _bits(b) for a, b in pairs]
    return np.asarray(100 * np.mean(gaps, axis=0))


def _bits(training: Training) -> NDArray[np.float64]:
    return unpack_bits(training.correct or "0:").astype(float)
