"""Known values, scipy where it has the function, and the size of the tests under the null."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aim_tune.stats.paired import (
    ADDED,
    Sample,
    anytime_half_width,
    anytime_in_errors,
    anytime_p,
    block_variance,
    crossed_parts,
    crossed_variance,
    detectable_in_errors,
    holm,
    p_better_in_new_block,
    reach,
    sign_flip_p,
    t_quantile,
)

SIX = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])  # mean 2, s^2 = 4/5, standard error 0.36515


def cells(blocks: int, examples: int, seed: int, sd: tuple[float, float, float]) -> np.ndarray:
    """Crossed null: block, example and cell effects of mean zero."""
    rng = np.random.default_rng(seed)
    block, example, cell = sd
    return (
        rng.normal(0, block, (blocks, 1))
        + rng.normal(0, example, (1, examples))
        + rng.normal(0, cell, (blocks, examples))
    )


def test_the_block_interval_of_six_known_differences():
    low, high = Sample(differences=SIX).interval()
    assert low == pytest.approx(2 - 2.570582 * 0.365148, abs=1e-5)
    assert high == pytest.approx(2 + 2.570582 * 0.365148, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_block_interval_and_p_agree_with_scipy(seed):
    rng = np.random.default_rng(seed)
    arm, base = rng.normal(80.5, 1, 10), rng.normal(80, 1, 10)
    sample, theirs = Sample(differences=arm - base), stats.ttest_rel(arm, base)
    assert sample.p() == pytest.approx(theirs.pvalue)
    assert sample.interval() == pytest.approx(tuple(theirs.confidence_interval()))
    assert sample.interval(0.1) == pytest.approx(tuple(theirs.confidence_interval(0.9)))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 10, 13])
def test_sign_flip_agrees_with_scipy(size):
    d = np.random.default_rng(size).normal(0.4, 1, size)
    if size == 1:  # scipy needs two
        assert sign_flip_p(d) == 1.0
        return
    theirs = stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_p(d) == pytest.approx(theirs.pvalue)


def test_sign_flip_known_values():
    assert sign_flip_p(np.ones(6)) == 2 / 64  # only all plus and all minus reach the sum
    assert sign_flip_p(np.ones(5)) == 2 / 32  # five blocks cannot reach 5 %
    assert sign_flip_p(np.zeros(4)) == 1.0
    # |sum| >= 2: patterns of (1, 1, 2, -2): both equal signs... counted by hand: 12 of 16
    assert sign_flip_p(np.array([1.0, 1.0, 2.0, -2.0])) == 12 / 16


def test_sign_flip_of_30_blocks_is_exact():
    """Thirty 1s: only all plus and all minus reach 30. Fifteen 1s and a 15: a sum of 30 or of -30 alone."""
    assert sign_flip_p(np.ones(30)) == 2 / 2**30
    assert sign_flip_p(np.array([1.0] * 15 + [15.0])) == 2 / 2**16
    # twenty-nine 1s and a -1 sum to 28: all but one sign right (30 ways) or all right, both sides
    assert sign_flip_p(np.array([1.0] * 29 + [-1.0])) == 2 * 31 / 2**30


def test_sign_flip_of_many_blocks_is_drawn_and_repeatable():
    d = np.random.default_rng(0).normal(0.5, 1, 40)
    assert sign_flip_p(d) == sign_flip_p(d)
    assert sign_flip_p(d, draws=20_000) == pytest.approx(Sample(differences=d).p(), abs=0.01)


@pytest.mark.parametrize("df", [1, 5, 9, 19])
def test_what_can_be_detected_agrees_with_scipy(df):
    """The noncentral t at the effect that was found puts 80 % beyond the quantile of the central one."""
    effect, quantile = detectable_in_errors(df), t_quantile(df, 0.05)
    assert quantile == pytest.approx(stats.t.ppf(0.975, df))
    assert stats.nct(df, effect).sf(quantile) == pytest.approx(0.80)


@pytest.mark.parametrize("seed", range(3))
def test_crossed_parts_are_the_mean_squares_of_a_two_way_table(seed):
    """E = mean square of the residual: s_cell^2 / (n B). Rows and columns: their own variances over B, n,
    which scipy gives as standard errors of the means, squared."""
    c = cells(5, 40, seed, (1.0, 2.0, 3.0))
    of_blocks, of_examples, of_cells = crossed_parts(c)
    assert of_blocks == pytest.approx(stats.sem(c.mean(axis=1)) ** 2)
    assert of_examples == pytest.approx(stats.sem(c.mean(axis=0)) ** 2)
    total = ((c - c.mean()) ** 2).sum()
    rows = 40 * ((c.mean(axis=1) - c.mean()) ** 2).sum()
    columns = 5 * ((c.mean(axis=0) - c.mean()) ** 2).sum()
    assert of_cells == pytest.approx((total - rows - columns) / (4 * 39) / 200)


def test_crossed_variance_by_hand():
    # d_b = 0.5, 1.5: s^2/B = 0.25; examples 1, 1: 0; residuals +-0.5: 1 / 1 / 4 = 0.25; V = 0, floored
    assert crossed_variance(np.array([[1.0, 0.0], [1.0, 2.0]])) == 0.25
    # examples 0 and 2 in both blocks: s_example^2 / n = 2 / 2 = 1, nothing else
    assert crossed_variance(np.array([[0.0, 2.0], [0.0, 2.0]])) == 1.0
    # additive: block means 1 and 3 (2 / 2 = 1) plus example means 1 and 3 (2 / 2 = 1), no residual
    assert crossed_variance(np.array([[0.0, 2.0], [2.0, 4.0]])) == 2.0


def test_crossed_variance_is_never_below_either_factor_alone():
    for seed in range(20):
        c = cells(6, 30, seed, (0.1, 0.1, 5.0))
        by_block, by_example = block_variance(c.mean(1)), block_variance(c.mean(0))
        assert crossed_variance(c) >= max(by_block, by_example)


def test_crossed_interval_holds_its_size_where_the_block_interval_does_not():
    """Crossed null, B = 10: the block t misses the population difference often, the crossed one rarely."""
    quantile = t_quantile(9, 0.05)
    misses = {"crossed": 0, "block": 0}
    for seed in range(1000):
        c = cells(10, 80, seed, (0.3, 6.0, 6.0))
        misses["crossed"] += abs(c.mean()) > quantile * crossed_variance(c) ** 0.5
        misses["block"] += abs(c.mean()) > quantile * block_variance(c.mean(1)) ** 0.5
    assert misses["crossed"] <= 60
    assert misses["block"] >= 120


def test_detectable_effects_equal_the_published_table():
    """80 % power, in sd of the paired difference (evidence: fairness, 3.3)."""
    table = {3: 3.26, 5: 1.68, 6: 1.43, 8: 1.16, 10: 1.00, 15: 0.78, 20: 0.66, 30: 0.53}
    for blocks, sd in table.items():
        assert detectable_in_errors(blocks - 1) / blocks**0.5 == pytest.approx(sd, abs=0.005)


def test_the_detectable_effect_is_found_in_80_percent():
    rng = np.random.default_rng(0)
    effect = detectable_in_errors(9) / 10**0.5
    d = rng.normal(effect, 1, (20_000, 10))
    t = d.mean(1) / (d.std(1, ddof=1) / 10**0.5)
    assert np.mean(np.abs(t) > t_quantile(9, 0.05)) == pytest.approx(0.8, abs=0.01)


def test_detectable_with_two_blocks_is_large_but_finite():
    assert detectable_in_errors(1) == pytest.approx(16.2, abs=0.3)


def test_p_better_in_a_new_block_by_hand():
    # mean 2, s = 0.894427, sqrt(1 + 1/6) = 1.080123: t = 2.070197 with 5 df
    assert p_better_in_new_block(SIX) == pytest.approx(stats.t.cdf(2.070197, 5), abs=1e-6)
    assert p_better_in_new_block(np.zeros(4)) == 0.5
    assert p_better_in_new_block(np.ones(4)) == 1.0
    assert p_better_in_new_block(-np.ones(4)) == 0.0
    assert p_better_in_new_block(np.ones(1)) is None


def test_no_interval_from_one_block_or_from_no_spread_around_a_nonzero_mean():
    assert Sample(differences=np.array([3.0])).interval() is None
    assert Sample(differences=np.array([3.0])).p() == 1.0
    assert Sample(differences=np.array([1.0, 1.0, 1.0])).interval() is None
    assert Sample(differences=np.array([1.0, 1.0, 1.0])).detectable() is None


def test_no_difference_anywhere_is_an_interval_of_zero_width():
    sample = Sample(differences=np.zeros(3), cells=np.zeros((3, 5)))
    assert sample.interval() == (0.0, 0.0)
    assert (sample.p(), sample.detectable()) == (1.0, 0.0)


def test_anytime_interval_is_where_the_e_value_reaches_20():
    d, c = np.random.default_rng(1).normal(0.3, 1, 12), 1.0
    half = anytime_half_width(d, 0.05)
    for end in (d.mean() - half, d.mean() + half):
        x, n = d - end, len(d)
        total, squares = x.sum(), (x**2).sum()
        e = (c / (n + c)) ** 0.5 * (squares / (squares - total**2 / (n + c))) ** (n / 2)
        assert e == pytest.approx(20)


def test_anytime_p_is_one_over_the_e_value_and_fits_its_interval():
    d = np.random.default_rng(2).normal(1.5, 1, 12)
    p = anytime_p(d)
    assert p < 0.05
    assert anytime_half_width(d, p) == pytest.approx(abs(d.mean()))
    assert anytime_p(np.array([0.0, 0.1, -0.1])) == 1.0


def test_anytime_interval_needs_blocks_and_is_wider():
    assert anytime_half_width(np.array([1.0, 2.0, 3.0]), 0.05) is None
    fixed = Sample(differences=SIX).half_width()
    assert Sample(differences=SIX, anytime=True).half_width() > 1.5 * fixed


def test_looking_after_every_block_keeps_the_anytime_error_below_5_percent():
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(400):
        d = rng.normal(0, 1, 20)
        wrong += any(anytime_p(d[:n]) < 0.05 for n in range(2, 21))
    assert wrong <= 20


def test_holm_by_hand():
    adjusted, levels = holm([0.04, 0.01, 0.03])
    assert adjusted == pytest.approx([0.06, 0.03, 0.06])  # 3 x .01, 2 x .03, then not below
    assert levels == pytest.approx([0.025, 0.05 / 3, 0.025])  # the second fails: its level stays
    assert holm([]) == ([], [])


def test_holm_intervals_and_adjusted_p_agree():
    rng = np.random.default_rng(3)
    for _ in range(50):
        samples = [Sample(differences=rng.normal(0.8, 1, 8)) for _ in range(4)]
        adjusted, levels = holm([s.p() for s in samples])
        for sample, p, level in zip(samples, adjusted, levels, strict=True):
            low, high = sample.interval(level)
            assert (low > 0 or high < 0) == (p < 0.05)


def test_the_blocks_that_would_decide_are_the_first_that_find_the_effect():
    """Only blocks: the standard error shrinks as 1/sqrt(B); anytime-valid half width plus t(0.8)."""
    sample = Sample(differences=np.array([3.0, -2.0, 1.0, 2.0, -3.0, 0.0]))
    needed = reach(sample, 1.0).blocks
    sd = np.std(sample.differences, ddof=1)

    def points(size):
        return sd / size**0.5 * (anytime_in_errors(size, ADDED) + stats.t.ppf(0.8, size - 1))

    assert points(needed) <= 1.0 < points(needed - 1)
    assert needed > 43  # (1.96 + 0.84)^2 sd^2 for a plan made before: looking again costs more


def test_200_blocks_by_hand():
    """B = 200, c = 1: factor = (sqrt(201) / .01)^(1/100) = 1417.74^.01 = 1.075266; room = 1 - 1.075266
    / 201 = .994650; half width in errors = sqrt(.075266 x 199 / .994650) = 3.880531; t(.8, 199) = .843431:
    4.723963 errors. Differences +-4: s^2 = 16 x 6 / 5 = 19.2; error at 200 = sqrt(.096) = .309839."""
    sample = Sample(differences=np.array([4.0, -4.0, 4.0, -4.0, 4.0, -4.0]))
    far = reach(sample, 0.5)
    assert (far.blocks, far.limit) == (None, "blocks")
    assert far.points == pytest.approx(4.723963 * 0.309839, rel=1e-5)  # 1.46367 points
    assert reach(sample, 1.4637).blocks == 200
    assert reach(sample, 1.4636).blocks is None


def test_blocks_cannot_buy_what_the_test_examples_lack():
    """The same 9 of 100 examples decide in every block: that part does not shrink."""
    rng = np.random.default_rng(0)
    cells = np.zeros((10, 100))
    cells[:, :5], cells[:, 5:9] = 100.0, -100.0
    cells[:, 9] = rng.choice([-100.0, 100.0], 10)
    sample = Sample(differences=cells.mean(axis=1), cells=cells)
    assert reach(sample, 1.0).blocks is None
    assert reach(sample, 1.0).limit == "examples"
    assert reach(sample, 20.0).blocks == 11  # one more is the least that can be added


@pytest.mark.parametrize("effect", [0.0, -1.0])
def test_no_effect_needs_no_blocks(effect):
    assert reach(Sample(differences=np.array([1.0, -1.0, 2.0])), effect) is None


def test_one_block_says_nothing_about_more():
    assert reach(Sample(differences=np.array([1.0])), 1.0) is None


def test_the_named_number_of_blocks_finds_the_effect_in_80_percent():
    """Spread known exactly: 6 blocks of sd 1; then 400 studies of the named size with the true effect."""
    seen = np.array([-1.0, 1.0, -1.0, 1.0, -1.0, 1.0]) / (6 / 5) ** 0.5
    size = reach(Sample(differences=seen), 0.7).blocks
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(400):
        study = Sample(differences=rng.normal(0.7, 1, size), anytime=True)
        found += study.interval(ADDED)[0] > 0
    assert 0.75 <= found / 400 <= 0.88


def test_drawn_signs_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    d = np.random.default_rng(1).normal(0.2, 1.0, 40)
    at_once = sign_flip_p(d, draws=5000)
    monkeypatch.setattr("aim_tune.stats.paired.DRAWN_AT_ONCE", 7 * 40)
    assert 0.01 < at_once < 0.99
    assert sign_flip_p(d, draws=5000) == at_once
