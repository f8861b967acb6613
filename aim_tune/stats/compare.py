"""Arm against arm over the judged blocks: the primary comparison unadjusted, all others by Holm.

Each comparison carries the crossed intervals (blocks and test examples), the block interval (this test
set), both p values and what it could have detected, at the level of the look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np

from aim_tune.ledger import History
from aim_tune.spec.study import BASELINE
from aim_tune.stats.evidence import differences
from aim_tune.stats.looks import Look
from aim_tune.stats.paired import Interval, Sample, holm, p_better_in_new_block, sign_flip_p
from aim_tune.stats.result import Comparison


def compare(
    history: History, look: Look, arms: Sequence[str], arm: str
) -> tuple[dict[str, Comparison], Sample]:
    """arm - baseline unadjusted, then (Holm) arm - others and others - baseline; and what the first rests
    on."""
    others = [a for a in arms if a not in (arm, BASELINE)]
    pairs = [(arm, BASELINE), *((arm, o) for o in others), *((o, BASELINE) for o in others)]
    found = [differences(history, look.blocks, a, b) for a, b in pairs]
    samples = [
        Sample(differences=f.points_B, cells=f.cells_BN, anytime=look.anytime) for f in found
    ]
    p_values = [s.p() if s.size else 1.0 for s in samples]
    adjusted, levels = holm(p_values[1:], look.alpha)
    comparisons = {}
    for pair, seen, sample, p, level in zip(
        pairs, found, samples, p_values[:1] + adjusted, [look.alpha, *levels], strict=True
    ):
        base = Comparison(
            arm=pair[0],
            reference=pair[1],
            adjusted=pair != pairs[0],
            lost_pairs=seen.lost,
            covers_examples=sample.cells is not None,
        )
        comparisons[f"{pair[0]} - {pair[1]}"] = _comparison(base, sample, p, level, look.alpha)
    return comparisons, samples[0]


def _comparison(
    base: Comparison, sample: Sample, p: float, level: float, unadjusted: float
) -> Comparison:
    """`base` with its figures: crossed intervals at `level`, the block interval at `unadjusted`."""
    if sample.size == 0:
        return base
    points = sample.differences
    return replace(
        base,
        effect_points=figure(sample.mean),
        ci95_points=interval(sample.interval(level)),
        ci90_points=interval(sample.interval(2 * level)),
        ci95_block_points=interval(sample.interval(unadjusted, crossed=False)),
        p_value=figure(p),
        sign_flip_p=figure(sign_flip_p(points)),
        differences_points=tuple(float(f"{d:.6g}") for d in points),
        wins=int(np.sum(points > 0)),
        ties=int(np.sum(points == 0)),
        p_better_new_block=figure(p_better_in_new_block(points)),
        mde_points=figure(sample.detectable(level)),
    )


def figure(value: Any) -> float | None:
    """Six significant digits; None for what is not finite."""
    return float(f"{value:.6g}") if value is not None and isfinite(value) else None


def interval(ends: Interval | None) -> Interval | None:
    """Both ends to six significant digits."""
    return None if ends is None else (float(f"{ends[0]:.6g}"), float(f"{ends[1]:.6g}"))
