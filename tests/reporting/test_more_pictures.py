"""The pictures of cost and detail: their sentences state what was put in, by hand."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from aim_tune.ledger import History, pack_ints
from aim_tune.reporting import plots_cost, plots_detail
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats import decide
from aim_tune.stats.simulate import Outcome, example_study, simulated_history

TWO = (BASELINE, "aim")


def studied(play, **protocol) -> tuple[Study, History]:
    study = example_study(**{"blocks": 3, "twins": 4, "confirm": 1, "arms": TWO, **protocol})
    return study, simulated_history(study, play)


def flat(request, arm) -> Outcome:
    return Outcome(val_accuracy=0.6 if arm == "aim" else 0.5, bits=np.arange(100) < 50)


def test_at_equal_time_a_slower_arm_has_had_fewer_trials():
    study, history = studied(flat)
    for t in history.rows("twin", "aim"):
        t.result = replace(t.result, seconds=4.0)  # the baseline takes 2.0
    picture = plots_cost.expected_best_over_time(study, history, decide(study, history))
    assert (
        "With 8 s of training each, aim is expected +10.00 points from baseline" in picture.sentence
    )
    assert "one trial takes 4 s against 2 s" in picture.sentence


def test_the_target_is_the_baselines_median_and_the_first_pass_above_it_counts():
    study, history = studied(flat)
    picture = plots_cost.time_to_target(study, history)
    assert "50.0 % of the validation images" in picture.sentence
    assert "baseline: 3 of 3 runs, in the median after 2 s" in picture.sentence
    assert "aim: 3 of 3 runs, in the median after 1 s" in picture.sentence  # 0.6 (1 - e^-2) > 0.5


def test_a_run_that_never_gets_there_is_counted_as_such():
    def play(request, arm):
        return Outcome(val_accuracy=0.4 if arm == "aim" else 0.5, bits=np.arange(100) < 50)

    assert "aim: 0 of 3 runs." in plots_cost.time_to_target(*studied(play)).sentence


def test_cost_is_told_as_ratios_to_the_baseline():
    study, history = studied(flat)
    picture = plots_cost.pareto(study, history, decide(study, history))
    assert picture.sentence.startswith(
        "aim takes 1.10 times the step time and 1.15 times the parameters of baseline, for 0.00 points."
    )


def test_memory_is_drawn_where_every_arm_has_it():
    study, history = studied(flat)
    for t in history.rows("confirm"):
        t.result = replace(t.result, peak_mib=300.0 if t.arm == "aim" else 100.0)
    picture = plots_cost.pareto(study, history, decide(study, history))
    assert "3.00 times the peak MiB" in picture.sentence


def test_slices_compare_with_the_baseline_at_the_same_shared_settings():
    def play(request, arm):
        gain = 0.1 if arm == "aim" and request.arms[arm].addon["activation"] == "relu" else 0.0
        return Outcome(val_accuracy=0.5 + gain, bits=np.arange(100) < 50)

    study, history = studied(play, explore=40)
    picture = plots_detail.setting_slices(study, history, decide(study, history))
    assert (
        "activation moves the median most (10.0 points), best at relu: +10.00" in picture.sentence
    )
    assert "40 trainings" in picture.sentence


def test_of_many_trainings_some_are_drawn_in_the_slices_and_the_medians_are_of_all(monkeypatch):
    def play(request, arm):
        gain = 0.1 if arm == "aim" and request.arms[arm].addon["activation"] == "relu" else 0.0
        return Outcome(val_accuracy=0.5 + gain, bits=np.arange(100) < 50)

    study, history = studied(play, explore=40)
    whole = plots_detail.setting_slices(study, history, decide(study, history))
    monkeypatch.setattr("aim_tune.reporting.plots.MOST_POINTS", 10)
    some = plots_detail.setting_slices(study, history, decide(study, history))
    assert some.sentence == f"{whole.sentence} One training in 4 is drawn."
    assert some.svg.count("<use ") < whole.svg.count("<use ") - 40


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([8, 16, 8], ["8", "16"]),
        ([(4, 4, 16), (2, 2, 8)], ["2×2×8", "4×4×16"]),
        (["relu", "tanh"], ["relu", "tanh"]),
    ],
)
def test_values_are_grouped_and_ordered(values, labels):
    assert list(plots_detail._by_value([(v, 1.0) for v in values])) == labels


def test_a_continuous_setting_falls_into_four_bins():
    groups = plots_detail._by_value([(0.5 + i, float(i)) for i in range(20)])
    assert [len(g) for g in groups.values()] == [5, 5, 5, 5]


def test_ranks_that_never_change_correlate_fully():
    def play(request, arm):
        return Outcome(val_accuracy=0.3 + 0.01 * request.turn, bits=np.arange(100) < 50)

    picture = plots_detail.early_ranks(*studied(play))
    assert "after a quarter baseline 1.00, aim 1.00" in picture.sentence


def with_predictions(history: History, labels: np.ndarray) -> None:
    """What workers report: the class where right, the next one where wrong."""
    from aim_tune.ledger import unpack_bits

    for t in history.rows("confirm"):
        right = unpack_bits(t.correct)
        t.result = replace(
            t.result, predictions=pack_ints(np.where(right, labels, (labels + 1) % 2))
        )


def test_fixed_and_broken_images_are_counted_per_class():
    labels = np.arange(100) % 2

    def play(
        request, arm
    ):  # both right on 40; aim also on ten of class 1, baseline on four of class 0
        right = np.arange(100) < 40
        right[[*range(41, 61, 2)] if arm == "aim" else [*range(40, 48, 2)]] = True
        return Outcome(val_accuracy=0.5, bits=right)

    study, history = studied(play)
    with_predictions(history, labels)
    picture = plots_detail.fixed_and_broken(study, history, decide(study, history))
    ElementTree.fromstring(picture.svg)
    assert (
        "Over 3 confirm pairs aim fixes 10.0 % of the test images, breaks 4.0 %" in picture.sentence
    )
    # of class 1 only images that somebody was right about have a known class: 20 + 10
    assert "class 1 (+33.33 points), least in class 0 (−16.67)" in picture.sentence


def test_without_predictions_no_class_is_known():
    study, history = studied(flat)
    assert plots_detail.fixed_and_broken(study, history, decide(study, history)) is None
