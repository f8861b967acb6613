"""Expected best by hand, the gap that closes, correlations without values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aim_tune.stats.tuning import (
    correlation,
    expected_best,
    expected_best_curve,
    jackknife_error,
    tuning_gap,
)


def test_expected_best_by_hand():
    values = np.array([3.0, 1.0, 2.0])
    assert expected_best(values, 1) == pytest.approx(2.0)  # the mean
    # 1 (1/9) + 2 (3/9) + 3 (5/9)
    assert expected_best(values, 2) == pytest.approx(22 / 9)
    assert expected_best(np.array([3.0, np.nan, 1.0, 2.0]), 2) == pytest.approx(22 / 9)


def test_the_curve_stops_at_half_of_the_trials_left_without_one_block():
    curve, error = expected_best_curve(np.arange(20.0).reshape(4, 5), 20)
    assert len(curve) == len(error) == 7  # (4 - 1) x 5 // 2
    assert curve[0] == pytest.approx(9.5)
    assert (np.diff(curve) > 0).all()
    assert len(expected_best_curve(np.ones((1, 4)), 9)[0]) == 2


def test_jackknife_error_of_means_is_the_standard_error():
    x = np.random.default_rng(0).normal(size=12)
    left_out = np.array([np.delete(x, i).mean() for i in range(12)])
    assert jackknife_error(left_out) == pytest.approx(x.std(ddof=1) / 12**0.5)


def test_a_constant_gap_does_not_close():
    base = np.random.default_rng(0).normal(80, 2, (6, 4))
    gap = tuning_gap(base + 1.0, base)
    assert gap.trials == (2, 4)
    assert gap.points == pytest.approx((1.0, 1.0))
    assert not gap.closing


def test_a_flatter_arm_with_the_same_optimum_has_a_closing_gap():
    draws = np.random.default_rng(0).uniform(0, 1, (10, 5)) ** 2
    steep, flat = 80 - 10 * draws, 80 - 3 * draws
    gap = tuning_gap(flat, steep)
    assert gap.points[0] > gap.points[1] > 0
    assert gap.closing


def test_levels_of_blocks_do_not_enter_the_gap():
    rng = np.random.default_rng(1)
    arm, base = rng.normal(80, 1, (5, 4)), rng.normal(80, 1, (5, 4))
    shift = np.array([[0.0], [10.0], [-10.0], [5.0], [3.0]])
    assert tuning_gap(arm + shift, base + shift).points == pytest.approx(
        tuning_gap(arm, base).points
    )


def test_a_twin_without_a_score_of_both_arms_is_left_out():
    base = np.random.default_rng(0).normal(80, 2, (6, 4))
    arm = base + 1.0
    arm[2, 1] = np.nan
    assert tuning_gap(arm, base).points == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("shape", [(6, 1), (2, 4)], ids=["one twin", "2 blocks"])
def test_there_is_no_gap_to_speak_of(shape):
    assert tuning_gap(np.ones(shape), np.zeros(shape)) is None


def test_no_gap_where_a_block_has_no_scores():
    arm = np.ones((4, 3))
    arm[1] = np.nan
    assert tuning_gap(arm, np.zeros((4, 3))) is None


def test_correlation_is_scipy_s_or_none():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 4.0])
    assert correlation(a, b) == pytest.approx(stats.pearsonr(a, b).statistic)
    assert correlation(a[:2], b[:2]) is None
    assert correlation(a, np.ones(3)) is None
