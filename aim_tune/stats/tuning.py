"""Does the answer depend on how much was tuned? Expected best of m trials, gap of two arms, correlation.

The gap is read at n/2 and n trials: if it shrinks, more tuning of the baseline may close it (an arm
with a flatter basin wins by +0.58 points at 5 trials and +0.12 at 50, with the same optimum). Spread
over blocks is a jackknife: no bootstrap below 20 units. Only randomly drawn trials are exchangeable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Arm minus reference in expected best validation accuracy, at two budgets."""

    trials: tuple[int, int]
    """Half of a block's twins (rounded down), and all of them."""
    points: tuple[float, float]
    """Gap at either budget."""
    closing: bool
    """Whether it shrinks by more than one jackknife standard error."""


def expected_best(values: NDArray[np.float64], trials: int) -> float:
    """Expected maximum of `trials` draws from the empirical distribution of `values`.

    sum_i v_(i) [(i/N)^m - ((i-1)/N)^m] (Dodge et al. 2019); asked for m <= N/2 only, where its bias
    stays below 0.12 sd. NaN (a training without a score) is left out.

    >>> expected_best(np.array([0.0, 1.0]), 1)
    0.5
    """
    known = np.sort(values[~np.isnan(values)])
    ranks = np.arange(len(known) + 1) / len(known)
    return float(known @ np.diff(ranks**trials))


def expected_best_curve(
    values_BN: NDArray[np.float64], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected best at 1..most trials, pooled over blocks, and its jackknife standard error.

    `most` is cut to half of the trials left when one block is out.
    """
    blocks, twins = values_BN.shape
    most = max(1, min(most, (blocks - 1) * twins // 2 if blocks > 1 else twins // 2))
    trials = range(1, most + 1)
    curve = np.array([expected_best(values_BN.ravel(), m) for m in trials])
    left_out = [
        [expected_best(np.delete(values_BN, b, axis=0).ravel(), m) for m in trials]
        for b in range(blocks if blocks > 1 else 0)
    ]
    return curve, jackknife_error(np.array(left_out)) if left_out else np.zeros_like(curve)


def jackknife_error(left_out: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error from the estimates with each unit left out (first axis)."""
    count = len(left_out)
    return np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean(axis=0)) ** 2, axis=0))


def tuning_gap(arm_BN: NDArray[np.float64], reference_BN: NDArray[np.float64]) -> Gap | None:
    """The gap at n/2 and n trials from all blocks' randomly drawn twins (points), or None.

    None for one twin per block, fewer than 3 blocks, or a block without scores. A twin counts where both
    arms have a score. A block's level (the mean of both arms) is taken out first: pooling must not mix easy
    splits with lucky draws.
    """
    blocks, twins = arm_BN.shape
    pair_2BN = np.stack([arm_BN, reference_BN])
    pair_2BN[:, np.isnan(pair_2BN).any(axis=0)] = np.nan
    if twins < 2 or blocks < 3 or np.isnan(pair_2BN).all(axis=(0, 2)).any():
        return None
    pair_2BN = pair_2BN - np.nanmean(pair_2BN, axis=(0, 2))[None, :, None]
    budgets = (twins // 2, twins)
    half, full = (_gap(pair_2BN, m) for m in budgets)
    shrinks = np.array([_shrinkage(np.delete(pair_2BN, b, 1), budgets) for b in range(blocks)])
    error = float(jackknife_error(shrinks))
    return Gap(
        trials=budgets,
        points=(half, full),
        closing=_shrinkage(pair_2BN, budgets) > max(error, 1e-9),
    )


def _gap(pair_2BN: NDArray[np.float64], trials: int) -> float:
    return expected_best(pair_2BN[0].ravel(), trials) - expected_best(pair_2BN[1].ravel(), trials)


def _shrinkage(pair_2BN: NDArray[np.float64], budgets: tuple[int, int]) -> float:
    """By how much the gap is smaller at the larger budget, whichever arm leads."""
    return abs(_gap(pair_2BN, budgets[0])) - abs(_gap(pair_2BN, budgets[1]))


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Pearson's r; None below 3 pairs or where one side does not vary."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])
