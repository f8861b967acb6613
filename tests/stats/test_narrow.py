"""Narrowing by hand: good for some arm, a margin, choices kept, nothing with too few trials."""

from __future__ import annotations

import pytest

from aim_tune.spec.space import Choice, Fixed, IntUniform, Uniform
from aim_tune.stats.narrow import Trial, narrowed

LR = Uniform(1e-4, 1.0, log=True)


def trials(setting, values, **scores):
    """One trial per value; `scores` gives each arm's score of a value."""
    return [
        Trial(shared={setting: v}, scores={arm: of(v) for arm, of in scores.items()})
        for v in values
    ]


def peak(at):
    return lambda v: -abs(v - at)


TENTHS = [i / 20 for i in range(21)]


def test_the_range_is_the_union_of_what_was_good_for_either_arm_with_a_margin():
    """21 trials, so 6 are good: 0.1 to 0.35 (tied ends: the first) and 0.6 to 0.85."""
    found = narrowed(
        {"x": Uniform(0.0, 1.0)},
        trials("x", TENTHS, baseline=peak(0.24), aim=peak(0.74)),
    )["x"]
    assert (found.low, found.high) == (pytest.approx(0.0), pytest.approx(0.95))
    one = narrowed({"x": Uniform(0.0, 1.0)}, trials("x", TENTHS, aim=peak(0.74)))["x"]
    assert (one.low, one.high) == (pytest.approx(0.5), pytest.approx(0.95))


def test_which_arm_is_which_does_not_matter():
    one = narrowed({"x": Uniform(0.0, 1.0)}, trials("x", TENTHS, a=peak(0.3), b=peak(0.5)))
    other = narrowed({"x": Uniform(0.0, 1.0)}, trials("x", TENTHS, a=peak(0.5), b=peak(0.3)))
    assert one == other


def test_a_logarithmic_range_is_narrowed_in_its_logarithm():
    values = [10 ** (-i / 5) for i in range(21)]  # 1 down to 1e-4
    found = narrowed({"lr": LR}, trials("lr", values, aim=lambda v: v))["lr"]
    assert found.log
    assert found.high == 1.0  # the margin does not leave the range
    assert found.low == pytest.approx(10 ** (-5 / 5) / 10**0.4)  # the sixth best, four decades / 10


def test_whole_numbers_stay_whole_and_never_collapse():
    found = narrowed({"n": IntUniform(1, 3)}, trials("n", [1, 2, 3] * 8, aim=lambda v: v))["n"]
    assert found == IntUniform(2, 3)


def test_a_choice_keeps_what_was_good_for_some_arm_and_what_was_hardly_tried():
    options = Choice(("a", "b", "c", "d"))
    values = ["a"] * 8 + ["b"] * 8 + ["c"] * 6 + ["d"] * 2
    rows = [
        Trial(
            shared={"x": v},
            scores={"baseline": 1.0 * (v == "a") + i / 1000, "aim": 1.0 * (v == "b") + i / 1000},
        )
        for i, v in enumerate(values)
    ]
    assert narrowed({"x": options}, rows)["x"] == Choice(("a", "b", "d"))


def test_stopped_and_failed_trainings_and_repeats_are_not_good():
    rows = trials("x", TENTHS, aim=peak(0.2))
    high = [Trial(shared={"x": 0.9}, scores={"aim": None}) for _ in range(9)]
    again = [Trial(shared={"x": 1.0}, scores={"aim": 5.0}, repeat=True)]
    found = narrowed({"x": Uniform(0.0, 1.0)}, [*rows, *high, *again])["x"]
    assert found.high < 0.6


@pytest.mark.parametrize("count", [0, 1, 19])
def test_too_few_different_trials_narrow_nothing(count):
    rows = trials("x", TENTHS[:count], aim=peak(0.2))
    repeats = [Trial(shared={"x": 0.2}, scores={"aim": 1.0}, repeat=True)] * 10
    whole = {"x": Uniform(0.0, 1.0)}
    assert narrowed(whole, [*rows, *repeats]) == whole


def test_where_nothing_has_a_score_the_ranges_stay():
    whole = {"x": Uniform(0.0, 1.0), "y": Fixed(3)}
    rows = [Trial(shared={"x": v, "y": 3}, scores={"aim": None}) for v in TENTHS]
    assert narrowed(whole, rows) == whole
