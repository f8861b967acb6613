"""Every verdict from a hand-made history: the bits of each confirm run are chosen, the result computed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aim_tune.spec.request import Request
from aim_tune.stats.simulate import Outcome, World, example_study, simulated_history
from aim_tune.stats.verdict import Verdict, decide

ISSUE_KEYS = {
    "verdict", "effect_points", "ci95_points", "blocks", "mde_points", "p_better_new_block",
    "attribution", "metric", "unit", "higher_is_better", "claim", "interim", "budget", "study_hash",
}  # fmt: skip


def bits(examples: int, extra: list[int]) -> np.ndarray:
    """The first half right, plus `extra` examples beyond it."""
    right = np.arange(examples) < examples // 2
    right[[examples // 2 + i for i in extra]] = True
    return right


def gains(by_arm, examples=100, apart=True):
    """Play: in block b the arm has by_arm[arm][b] more right answers than the baseline, on examples that
    differ between blocks (apart) or are the same in every block."""

    def play(request: Request, arm: str) -> Outcome:
        if not request.test:
            return Outcome(val_accuracy=0.5)
        gain = by_arm.get(arm, [0] * 99)[request.block]
        wrong = gain < 0
        start = 4 * request.block if apart else 0
        right = bits(examples, [] if wrong else list(range(start, start + gain)))
        if wrong:
            right[start : start - gain] = False
        return Outcome(val_accuracy=0.5, bits=right)

    return play


def verdict_of(play, *, arms=("baseline", "aim"), requests=None, **protocol) -> Verdict:
    study = example_study(**{"twins": 1, "confirm": 1, "arms": arms, **protocol})
    return decide(study, simulated_history(study, play, requests=requests))


def test_clearly_better_by_hand():
    """d = 1 2 3 1 2 3: s_block^2/B = .1333; 12 examples at 100/6: s_example^2/n = 8/27, the floor.
    t(.975, 5) = 2.570582: 2 +- 1.39925; beyond the ROPE of 0.5, above 0 in all six blocks."""
    v = verdict_of(gains({"aim": [1, 2, 3, 1, 2, 3]}), blocks=6)
    assert (v.verdict, v.clearly, v.small, v.claim) == ("better", True, False, "new_examples")
    assert v.effect_points == pytest.approx(2.0)
    assert v.ci95_points == pytest.approx((2 - 1.39925, 2 + 1.39925), abs=1e-4)
    assert v.ci90_points == pytest.approx(
        (2 - 2.015048 * 0.544331, 2 + 2.015048 * 0.544331), abs=1e-4
    )
    assert v.primary.ci95_block_points == pytest.approx((1.06136, 2.93864), abs=1e-4)
    assert v.mde_points == pytest.approx(3.513905 * 0.544331, abs=1e-4)
    assert (v.blocks, v.wins, v.sign_flip_p) == (6, 6, 0.03125)
    assert v.p_better_new_block == pytest.approx(0.9534, abs=2e-3)
    assert not v.interim


def test_better_but_not_clearly():
    v = verdict_of(gains({"aim": [1, 2, 3, 1, 2, 3]}), blocks=6, rope_points=1.0)
    assert (v.verdict, v.clearly, v.small) == ("better", False, False)


def test_better_but_below_the_size_declared_to_matter():
    v = verdict_of(gains({"aim": [1, 2, 3, 1, 2, 3]}), blocks=6, rope_points=4.0)
    assert (v.verdict, v.clearly, v.small) == ("better", False, True)


def test_worse_mirrors_better():
    v = verdict_of(gains({"aim": [-1, -2, -3, -1, -2, -3]}), blocks=6)
    assert (v.verdict, v.clearly, v.wins) == ("worse", True, 0)
    assert v.ci95_points == pytest.approx((-3.39925, -0.60075), abs=1e-4)


def test_better_on_this_test_set_only():
    """The gain sits on one and the same example: blocks agree, examples do not."""
    v = verdict_of(gains({"aim": [1, 1, 1, 1, 1, 2]}, apart=False), blocks=6)
    assert (v.verdict, v.claim) == ("better", "this_test_set")
    assert v.ci95_points == pytest.approx((7 / 6 - 0.428430, 7 / 6 + 0.428430), abs=1e-4)
    assert v.primary.ci95_points[0] < 0 < v.primary.ci95_points[1]


def test_equivalent_by_hand():
    """+-0.1 points of 1,000 examples: s_block^2/B = .002 is the floor or near it; 90 % within 0.5."""
    v = verdict_of(gains({"aim": [1, -1, 1, -1, 1, -1]}, examples=1000), blocks=6)
    assert v.verdict == "equivalent"
    assert v.effect_points == pytest.approx(0.0)
    assert v.ci90_points[1] == pytest.approx(2.015048 * 0.002**0.5, rel=0.02)


def test_no_evidence_says_what_could_have_been_seen():
    v = verdict_of(gains({"aim": [3, -2, 1, 2, -3, 0]}), blocks=6)
    assert v.verdict == "no_evidence"
    assert v.ci95_points[0] < 0 < v.ci95_points[1]
    assert v.mde_points > 1.43 * 2.3  # sd of d is 2.32; the crossed factor is at least 1


@pytest.mark.parametrize("blocks", [2, 3, 6, 10])
def test_no_difference_anywhere_is_equivalent(blocks):
    v = verdict_of(gains({}), blocks=blocks)
    assert (v.verdict, v.effect_points, v.ci95_points) == ("equivalent", 0.0, (0.0, 0.0))
    assert (v.mde_points, v.p_better_new_block, v.sign_flip_p) == (0.0, 0.5, 1.0)


def test_one_block_has_an_effect_and_no_interval():
    v = verdict_of(gains({"aim": [7]}), blocks=1)
    assert (v.verdict, v.effect_points, v.ci95_points, v.mde_points) == (
        "no_evidence",
        7.0,
        None,
        None,
    )
    assert verdict_of(gains({}), blocks=1).verdict == "no_evidence"


def test_two_blocks_are_judged_with_a_t_of_one_degree():
    v = verdict_of(gains({"aim": [3, 3]}), blocks=2)
    assert v.verdict == "no_evidence"
    assert (
        v.ci95_points[1] - 3 > 12.7
    )  # t(.975, 1) = 12.706 times the example term, at least 1 point
    assert v.mde_points > 16


def test_the_same_gain_in_every_block_without_bits_is_not_certainty():
    study = example_study(blocks=6, twins=1, confirm=1, arms=("baseline", "aim"))
    history = simulated_history(study, gains({"aim": [2] * 6}))
    for t in history.trainings.values():
        t.correct = None
    v = decide(study, history)
    assert (v.verdict, v.claim, v.ci95_points) == ("no_evidence", "this_test_set", None)


def test_without_bits_only_this_test_set_is_claimed():
    study = example_study(blocks=6, twins=1, confirm=1, arms=("baseline", "aim"))
    history = simulated_history(study, gains({"aim": [1, 2, 3, 1, 2, 3]}))
    for t in history.trainings.values():
        t.correct = None
    v = decide(study, history)
    assert (v.verdict, v.claim) == ("better", "this_test_set")
    assert v.ci95_points == pytest.approx((1.06136, 2.93864), abs=1e-4)


def test_from_eight_blocks_the_sign_flip_must_agree():
    """Three zeros: only 2 x 2^3 of 256 sign patterns are as extreme (p = .0625), while t excludes 0."""
    d = [0, 4, 0, 1, 1, 1, 0, 3]
    v = verdict_of(gains({"aim": d}, examples=400), blocks=8)
    assert v.primary.ci95_block_points[0] > 0
    assert v.sign_flip_p == 16 / 256
    assert (v.verdict, v.tests_disagree) == ("no_evidence", True)
    assert v.ci95_points == v.primary.ci95_points


def test_seven_blocks_are_judged_without_the_sign_flip():
    v = verdict_of(gains({"aim": [2, 1, 2, 1, 2, 1, 2]}), blocks=7)
    assert v.verdict == "better"


def test_unequal_budgets_withhold_the_verdict():
    study = example_study(blocks=6, twins=1, confirm=1, arms=("baseline", "aim"))
    history = simulated_history(study, gains({"aim": [1, 2, 3, 1, 2, 3]}))
    trainings = [t for t in history.trainings.values() if t.arm == "aim"]
    for t in trainings:
        t.result = type(t.result)(**{**t.result.to_dict(), "allotted_steps": 310})
    v = decide(study, history)
    assert v.verdict == "withheld"
    assert (
        v.reason == "the arms' budgets were not equal (steps allotted: baseline 3,600, aim 3,720)"
    )
    assert not v.tests_disagree


def test_many_lost_pairs_withhold_the_verdict_and_few_are_counted():
    def play(lost):
        inner = gains({"aim": [1, 2, 3, 1, 2, 3]})

        def run(request, arm):
            if request.test and arm == "aim" and (request.block, request.position[-1]) in lost:
                return Outcome(val_accuracy=None, status="oom", steps=0)
            return inner(request, arm)

        return run

    v = verdict_of(play({(0, "0"), (1, "0")}), blocks=6, confirm=2)
    assert (v.verdict, v.primary.lost_pairs, v.blocks) == ("withheld", 2, 6)
    assert v.reason == "2 of 12 confirm pairs have no score of both arms"
    v = verdict_of(play({(0, "0")}), blocks=6, confirm=2)
    assert (v.verdict, v.primary.lost_pairs, v.budget["aim"].failed) == ("better", 1, 1)
    assert v.budget["aim"].steps == v.budget["baseline"].steps  # what it was granted


def test_a_diverged_run_keeps_its_score_and_is_counted():
    inner = gains({"aim": [1, 2, 3, 1, 2, 3]})

    def play(request, arm):
        outcome = inner(request, arm)
        if arm == "aim" and request.position == "block/0/confirm/0":
            return Outcome(val_accuracy=0.5, bits=outcome.bits, status="diverged", steps=90)
        return outcome

    v = verdict_of(play, blocks=6)
    assert (v.verdict, v.blocks, v.budget["aim"].diverged) == ("better", 6, 1)
    assert (v.budget["aim"].steps, v.budget["aim"].steps_done) == (3600, 3390)


def test_only_whole_blocks_count_and_partial_results_are_interim():
    play = gains({"aim": [1, 2, 3, 1, 2, 3, 3, 3]})
    whole = verdict_of(play, blocks=8, requests=12)
    partial = verdict_of(play, blocks=8, requests=13)  # one twin of the seventh block
    assert (partial.blocks, partial.blocks_planned, partial.interim) == (6, 8, True)
    assert partial == whole
    assert partial.budget["aim"].trials == 12


def test_interim_intervals_are_anytime_valid():
    play = gains({"aim": [1, 3, 1, 3, 1, 3, 2, 2]})
    interim, final = verdict_of(play, blocks=8, requests=12), verdict_of(play, blocks=6)
    assert interim.effect_points == final.effect_points
    assert interim.ci95_points[0] < final.ci95_points[0]
    assert (interim.verdict, final.verdict) == ("no_evidence", "better")


def test_blocks_added_after_the_plan_keep_the_anytime_interval():
    study = example_study(blocks=6, twins=1, confirm=1, arms=("baseline", "aim"))
    history = simulated_history(study, gains({"aim": [1, 2, 3, 1, 2, 3]}))
    planned = decide(study, history)
    history.apply({"event": "extended", "time": 0.0, "blocks": 6})
    extended = decide(study, history)
    assert (extended.extended, extended.interim, extended.anytime) == (True, False, True)
    assert extended.ci95_points[0] < planned.ci95_points[0]
    assert extended.study_hash == study.study_hash


def test_nothing_finished_has_a_verdict():
    v = verdict_of(gains({}), blocks=6, requests=0)
    assert (v.verdict, v.blocks, v.interim, v.effect_points) == ("no_evidence", 0, True, None)
    assert json.dumps(v.to_dict(), allow_nan=False)


@pytest.mark.parametrize("protocol", [{"blocks": 0, "explore": 3}, {"arms": ("aim",), "blocks": 2}])
def test_plain_search_is_not_asked(protocol):
    v = verdict_of(gains({}), **protocol)
    assert (v.verdict, v.effect_points, v.interim, v.attribution) == ("not_asked", None, False, {})
    trials = 3 if "explore" in protocol else 4
    assert v.budget["aim"].trials == trials
    assert set(v.to_dict()) >= ISSUE_KEYS


ATTRIBUTIONS = {
    "attributed": [0, 0, 0, 0, 0, 0],
    "does_as_well": [1, 2, 3, 1, 2, 3],
    "undecided": [3, 0, 3, 0, 3, 0],
}


@pytest.mark.parametrize("outcome", ATTRIBUTIONS)
def test_attribution_has_three_outcomes(outcome):
    play = gains({"aim": [1, 2, 3, 1, 2, 3], "frozen": ATTRIBUTIONS[outcome]})
    v = verdict_of(play, arms=("baseline", "aim", "frozen"), blocks=6)
    assert v.verdict == "better"
    assert v.attribution == {"frozen": outcome}


def test_a_placebo_that_is_better_does_as_well():
    play = gains({"aim": [1, 2, 3, 1, 2, 3], "frozen": [8, 9, 8, 9, 8, 9]})
    v = verdict_of(play, arms=("baseline", "aim", "frozen"), blocks=6)
    assert v.attribution == {"frozen": "does_as_well"}
    assert v.comparisons["aim - frozen"].ci95_points[1] < 0


def test_the_primary_comparison_is_unadjusted_and_the_others_are_holm():
    play = gains({"aim": [1, 2, 3, 1, 2, 3]})
    two = verdict_of(play, blocks=6)
    three = verdict_of(play, arms=("baseline", "aim", "frozen"), blocks=6)
    assert list(three.comparisons) == ["aim - baseline", "aim - frozen", "frozen - baseline"]
    assert three.ci95_points == two.ci95_points
    second, third = list(three.comparisons.values())[1:]
    assert (second.adjusted, third.adjusted) == (True, True)
    # same differences as aim - baseline, judged at 5 % / 2: t(.9875, 5) = 3.163381
    assert second.ci95_points == pytest.approx(
        (2 - 3.163381 * 0.544331, 2 + 3.163381 * 0.544331), abs=1e-4
    )
    assert second.p_value == pytest.approx(2 * three.primary.p_value, rel=1e-4)
    assert third.p_value == 1.0


def test_an_add_on_arm_of_another_name_is_asked_about():
    v = verdict_of(gains({"gate": [1, 2, 3, 1, 2, 3]}), arms=("baseline", "gate"), blocks=6)
    assert (v.arm, v.verdict) == ("gate", "better")


def test_every_key_of_the_interface_is_written_and_read_back():
    study = example_study(blocks=6, explore=4)
    v = decide(study, simulated_history(study, World(effects={"aim": 2.0}).play), study_number=3)
    value = v.to_dict()
    assert set(value) >= ISSUE_KEYS
    assert (value["metric"], value["unit"], value["higher_is_better"]) == (
        "test_accuracy", "points", True,
    )  # fmt: skip
    assert set(value["budget"]["aim"]) >= {"trials", "steps", "seconds", "failed", "test_looks"}
    assert value["budget"]["aim"]["trials"] == 6 * (5 + 2)
    assert value["budget"]["frozen"]["steps"] == 6 * 7 * 300
    assert value["budget"]["baseline"]["test_looks"] == 12
    assert value["explore_budget"]["aim"]["trials"] == 4
    assert value["test_examples"] == 400
    assert value["study_hash"] == study.study_hash
    assert Verdict.from_dict(json.loads(json.dumps(value, allow_nan=False))) == v


def test_pairing_is_measured():
    study = example_study(blocks=10)
    v = decide(study, simulated_history(study, World(effects={}, steepness=25).play))
    assert v.twin_correlation > 0.8  # the shared lr draw moves both arms
    assert v.block_correlation > 0.3  # the shared split


def test_identical_arms_seldom_win_or_lose():
    """A/A through the whole code: 120 small simulated studies; 6 % of them are 7."""
    study = example_study(blocks=8, twins=2, confirm=1, arms=("baseline", "aim"))
    wrong = 0
    for seed in range(120):
        world = World(effects={}, seed=seed, test_examples=200)
        wrong += decide(study, simulated_history(study, world.play)).verdict in ("better", "worse")
    assert wrong <= 9


def test_a_planted_effect_is_found():
    study = example_study(arms=("baseline", "aim"), twins=2)
    found = 0
    for seed in range(10):
        world = World(effects={"aim": 4.0}, seed=seed, steepness=1.0, test_examples=2000)
        found += decide(study, simulated_history(study, world.play)).verdict == "better"
    assert found >= 9


def test_a_search_in_blocks_without_confirm_pairs_counts_its_blocks():
    v = verdict_of(gains({}), arms=("aim",), blocks=2, confirm=0)
    assert (v.verdict, v.blocks, v.interim) == ("not_asked", 2, False)


def test_a_verdict_made_again_keeps_its_number_among_the_studies():
    study = example_study(blocks=2, twins=1, confirm=1)
    history = simulated_history(study, World(effects={}).play)
    history.verdict = decide(study, history, study_number=4).to_dict()
    assert decide(study, history).study_number == 4
    assert decide(study, history, study_number=5).study_number == 5


def test_after_no_evidence_the_blocks_that_would_decide_are_named():
    v = verdict_of(gains({"aim": [3, -2, 1, 2, -3, 0]}), blocks=6, rope_points=1.0)
    assert v.verdict == "no_evidence"
    assert v.blocks_to_decide > 43
    assert (v.reach_points, v.reach_limit) == (None, None)
    assert verdict_of(gains({"aim": [1, 2, 3, 1, 2, 3]}), blocks=6).blocks_to_decide is None
    study = example_study(blocks=6, twins=1, confirm=1, arms=("baseline", "aim"))
    part = simulated_history(study, gains({"aim": [3, -2, 1, 2, -3, 0]}), requests=8)
    assert decide(study, part).blocks_to_decide is None  # the plan goes on anyway


def test_beyond_200_blocks_no_number_is_named_but_what_200_would_find():
    """Six blocks, 4 of 400 answers more or less, on other examples each time: d = +-1, s^2 = 1.2.

    Examples: 24 means of +-100/6, so 24 (100/6)^2 / 399 / 400 = .0417711; cells: (240,000 in all - 2,400
    of blocks - 40,000 of examples) / (5 x 399) / 2,400 = .0412698; their difference, .0005013, stays. At
    200 blocks: .0005013 + 1.2 / 200 = .0065013, its root .0806307, times 4.723963 (test_paired).
    """
    v = verdict_of(gains({"aim": [4, -4] * 3}, examples=400), blocks=6, rope_points=0.1)
    assert (v.verdict, v.blocks_to_decide, v.reach_limit) == ("no_evidence", None, "blocks")
    assert v.reach_points == pytest.approx(0.0806307 * 4.723963, rel=1e-4)


def looking(
    play, *, requests=None, attribution="always", arms=("baseline", "aim"), looks=(8, 12, 20)
):
    """A study of 20 blocks with planned looks; `requests` of 2 per block are done."""
    study = example_study(blocks=20, twins=1, confirm=1, arms=arms)
    study = replace(study, protocol=replace(study.protocol, looks=looks, attribution=attribution))
    return decide(study, simulated_history(study, play, requests=requests))


STEADY = [1, 2, 3, 1, 2, 3, 1, 2] * 3


def test_the_first_planned_look_that_decides_ends_the_study():
    """d = 1 2 3 1 2 3 1 2: mean 1.875. 15 of 100 examples at 100/8: s_example^2/n = (15 x 12.5^2 - 100 x
    1.875^2) / 99 / 100 = .201231, the floor (blocks .0870536, cells .235862): error .448588. At the level
    of three looks, .0217: t(7) = 2.940 instead of 2.365."""
    v = looking(gains({"aim": STEADY}), requests=18)  # nine blocks: the look takes eight
    assert (v.verdict, v.blocks, v.look, v.interim) == ("better", 8, 1, False)
    assert v.alpha == pytest.approx(0.0217, abs=2e-4)
    assert v.ci95_points == pytest.approx((1.875 - 1.3190, 1.875 + 1.3190), abs=0.003)
    assert v.primary.ci95_block_points == pytest.approx((1.875 - 0.8676, 1.875 + 0.8676), abs=0.003)


def test_a_look_needs_more_than_5_percent():
    """d = 1 1 1 1 1 1 1 0: mean .875; 7 examples at 12.5: error sqrt((7 x 12.5^2 - 100 x .875^2) / 9900) =
    .320540, t(7) = 2.72977, p = .0294: enough for a study of 8 blocks, not for the first of three looks."""
    d = [1, 1, 1, 1, 1, 1, 1, 0]
    alone = verdict_of(gains({"aim": d}), blocks=8)
    assert (alone.verdict, alone.primary.p_value) == ("better", pytest.approx(0.02936, abs=1e-4))
    look = looking(gains({"aim": d}), requests=16)
    assert (look.blocks, look.interim, look.look) == (8, True, None)  # so the study goes on
    assert look.primary.ci95_points[0] < 0


def test_between_looks_the_interval_is_anytime_valid_and_nothing_ends():
    noisy = [3, -2, 1, 2, -3, 0] * 4
    v = looking(gains({"aim": noisy}), requests=22)
    assert (v.verdict, v.blocks, v.interim, v.anytime) == ("no_evidence", 11, True, True)
    assert (v.look, v.alpha, v.blocks_to_decide) == (None, 0.05, None)


def test_the_last_look_ends_the_study_whatever_it_says():
    noisy = [3, -2, 1, 2, -3, 0] * 4
    v = looking(gains({"aim": noisy}, examples=200))
    assert (v.verdict, v.blocks, v.look, v.interim) == ("no_evidence", 20, 3, False)
    assert v.blocks_to_decide is not None or v.reach_points is not None


def test_better_on_this_test_set_does_not_end_a_study_early():
    """The gain sits on the same examples in every block: more blocks are the plan, so they are made."""
    same = gains({"aim": [1, 1, 1, 1, 1, 2, 1, 2] * 3}, apart=False)
    assert looking(same, requests=16).interim
    end = looking(same)
    assert (end.verdict, end.claim, end.look) == ("better", "this_test_set", 3)
