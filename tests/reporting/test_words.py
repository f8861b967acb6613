"""Every verdict and sentence by hand."""

# ruff: noqa: E501 - sentences stay whole

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from aim_tune.reporting.words import (
    attribution,
    comparison_line,
    count,
    notes,
    ordinal,
    sentence,
    signed,
    span,
)
from aim_tune.stats.budget import Budget
from aim_tune.stats.tuning import Gap
from aim_tune.stats.verdict import Comparison, Verdict

MAIN = Comparison(
    arm="aim",
    reference="baseline",
    effect_points=1.3249,
    ci95_points=(0.61, 2.034),
    ci90_points=(0.73, 1.92),
    differences_points=(1.0,) * 10,
    wins=9,
)
PLACEBO = Comparison(
    arm="aim",
    reference="frozen",
    effect_points=0.31,
    ci95_points=(-0.4, 1.02),
    mde_points=1.2,
    adjusted=True,
)


def budget(**changes) -> Budget:
    base = Budget(
        trials=70, steps=21_000, seconds=150.0, failed=0, test_looks=20, diverged=0, early=0,
        steps_done=21_000,
    )  # fmt: skip
    return replace(base, **changes)


def verdict(name: str, **changes) -> Verdict:
    base = Verdict(
        verdict=name,
        arm="aim",
        effect_points=1.3249,
        ci95_points=(0.61, 2.034),
        ci90_points=(0.73, 1.92),
        blocks=10,
        blocks_planned=10,
        mde_points=1.004,
        comparisons={"aim - baseline": MAIN, "aim - frozen": PLACEBO},
        budget={"baseline": budget(), "aim": budget()},
        twins=5,
        rope_points=0.5,
    )
    return replace(base, **changes)


CASES = {
    "better": (
        verdict("better"),
        "aim is better than baseline: +1.32 points of test accuracy (95 % interval +0.61 to +2.03; 10 blocks) "
        "(not attributed to memory).",
    ),
    "clearly better, attributed": (
        verdict("better", clearly=True, attribution={"frozen": "attributed"}),
        "aim is clearly better than baseline: +1.32 points of test accuracy (95 % interval +0.61 to +2.03; "
        "10 blocks), attributed to what the memory learned.",
    ),
    "better, placebo as well": (
        verdict("better", attribution={"frozen": "does_as_well"}),
        "aim is better than baseline: +1.32 points of test accuracy (95 % interval +0.61 to +2.03; 10 blocks), "
        "a frozen random memory does as well.",
    ),
    "better, undecided": (
        verdict("better", attribution={"frozen": "undecided"}),
        "aim is better than baseline: +1.32 points of test accuracy (95 % interval +0.61 to +2.03; 10 blocks), "
        "attribution undecided (MDE 1.20 points).",
    ),
    "better but small": (
        verdict("better", small=True),
        "aim is better than baseline, but below the size you declared to matter: +1.32 points of test accuracy "
        "(95 % interval +0.61 to +2.03; 10 blocks) (not attributed to memory).",
    ),
    "better here": (
        verdict("better", claim="this_test_set"),
        "aim is better than baseline on this test set: +1.32 points of test accuracy (95 % interval +0.61 to "
        "+2.03; 10 blocks) (not attributed to memory).",
    ),
    "worse": (
        verdict(
            "worse", effect_points=-1.0, ci95_points=(-1.9, -0.1), attribution={"frozen": "undecided"}
        ),
        "aim is worse than baseline: −1.00 points of test accuracy (95 % interval −1.90 to −0.10; 10 blocks).",
    ),
    "clearly worse": (
        verdict("worse", clearly=True, effect_points=-2.0, ci95_points=(-2.9, -1.1)),
        "aim is clearly worse than baseline: −2.00 points of test accuracy (95 % interval −2.90 to −1.10; "
        "10 blocks).",
    ),
    "equivalent": (
        verdict("equivalent", effect_points=0.001, ci90_points=(-0.2, 0.25)),
        "aim and baseline are equivalent within ±0.5 points: aim − baseline is 0.00 points (90 % interval −0.20 "
        "to +0.25; 10 blocks).",
    ),
    "no evidence": (
        verdict("no_evidence", effect_points=0.3, ci95_points=(-0.5, 1.1)),
        "No evidence either way: aim − baseline is +0.30 points (95 % interval −0.50 to +1.10; 10 blocks); this "
        "study could have seen a difference of 1.00 points or more.",
    ),
    "tests disagree": (
        verdict("no_evidence", tests_disagree=True),
        "No evidence (tests disagree): aim − baseline is +1.32 points (95 % interval +0.61 to +2.03; 10 blocks); "
        "this study could have seen a difference of 1.00 points or more.",
    ),
    "one block": (
        verdict("no_evidence", blocks=1, effect_points=7.0, ci95_points=None, mde_points=None),
        "No evidence: with one block this is configuration A against configuration B; aim − baseline is +7.00 "
        "points. Judged by a single search, 12 to 28 % of studies without any true effect declare a winner.",
    ),
    "no interval": (
        verdict("no_evidence", blocks=3, effect_points=1.0, ci95_points=None, mde_points=None),
        "No evidence either way: aim − baseline is +1.00 points, and 3 blocks give no interval.",
    ),
    "no interval yet": (
        verdict("no_evidence", blocks=3, interim=True, effect_points=1.0, ci95_points=None),
        "Interim, 3 of 10 blocks: No evidence either way: aim − baseline is +1.00 points, and 3 blocks give no "
        "anytime-valid interval.",
    ),
    "nothing yet": (
        verdict("no_evidence", blocks=0, interim=True, effect_points=None, ci95_points=None),
        "Interim, 0 of 10 blocks: No evidence: no whole block is finished.",
    ),
    "interim": (
        verdict("better", blocks=6, interim=True),
        "Interim, 6 of 10 blocks: aim is better than baseline: +1.32 points of test accuracy (95 % interval +0.61 "
        "to +2.03; 6 blocks) (not attributed to memory).",
    ),
    "withheld": (
        verdict("withheld", reason="the arms' budgets were not equal (trials allotted: baseline 70, aim 71)"),
        "Verdict withheld: the arms' budgets were not equal (trials allotted: baseline 70, aim 71).",
    ),
    "not asked": (
        Verdict(verdict="not_asked", budget={"aim": budget(trials=1)}),
        "No comparison was asked: plain search (aim 1 training).",
    ),
    "diverged": (
        verdict("better", budget={"baseline": budget(diverged=1), "aim": budget(diverged=3)}),
        "aim is better than baseline: +1.32 points of test accuracy (95 % interval +0.61 to +2.03; 10 blocks) "
        "(not attributed to memory). Diverged trainings, scored as they ended: baseline 1, aim 3.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_sentence(case):
    given, text = CASES[case]
    assert sentence(given) == text


def test_a_placebo_beyond_the_arm_does_better():
    ahead = replace(PLACEBO, effect_points=-2.0, ci95_points=(-3.0, -1.0))
    v = verdict(
        "better", attribution={"frozen": "does_as_well"}, comparisons={"aim - frozen": ahead}
    )
    assert attribution(v) == "a frozen random memory does better"


def test_other_arms_have_their_own_clauses():
    wide = replace(PLACEBO, reference="wide")
    v = verdict("better", comparisons={"aim - wide": wide}, attribution={"wide": "attributed"})
    assert attribution(v) == "more than wide gives"
    assert attribution(replace(v, attribution={"wide": "does_as_well"})) == "wide does as well"
    v = replace(v, attribution={"wide": "undecided"})
    assert attribution(v) == "against wide undecided (MDE 1.20 points)"
    assert attribution(verdict("better", arm="gate")) == "not attributed to what gate adds"


def test_comparison_lines():
    assert comparison_line(MAIN) == "aim − baseline: +1.32 points (95 % interval +0.61 to +2.03)"
    assert comparison_line(PLACEBO) == (
        "aim − frozen: +0.31 points (95 % interval −0.40 to +1.02, Holm-adjusted)"
    )
    assert comparison_line(replace(MAIN, ci95_points=None)) == (
        "aim − baseline: +1.32 points (no interval)"
    )
    assert comparison_line(Comparison(arm="a", reference="b")) == "a − b: no block finished"


def test_notes_state_budget_gap_pairing_sign_flip_and_looks():
    gap = Gap(trials=(2, 5), points=(2.0, 0.8), closing=True)
    v = verdict(
        "better", gap=gap, twin_correlation=0.95, block_correlation=0.4, sign_flip_p=0.00195,
        study_number=2, extended=True,
        comparisons={"aim - baseline": replace(MAIN, lost_pairs=1)},
    )  # fmt: skip
    assert notes(v) == [
        "Every arm was tuned with n = 5 trials per block; the expected-best validation gap is +2.00 points at "
        "2 trials and +0.80 at 5. Better when tuned with 5 trials; gap still closing.",
        "Correlation of the two arms achieved by pairing: 0.95 over twins (validation), 0.40 over blocks (test).",
        "Exact sign-flip p = 0.00195.",
        "1 confirm pair has no score of both arms and is left out.",
        "Blocks were added after the plan: the interval is anytime-valid, and judged at 1 %, as the plan's end has "
        "spent 5 %.",
        "2nd study on this test data.",
    ]


def test_notes_without_figures_say_why():
    v = verdict("no_evidence", blocks=6, sign_flip_p=0.03125, rope_points=0.0)
    assert notes(v) == [
        "Every arm was tuned with n = 5 trials per block; the expected-best gap needs at least 2 randomly drawn "
        "trials and 3 blocks.",
        "Exact sign-flip p = 0.0312 (printed only: below 8 blocks it cannot decide).",
    ]
    unseen = verdict("better", comparisons={"aim - baseline": replace(MAIN, covers_examples=False)})
    assert (
        "Correctness per example is not recorded: the interval covers this test set only."
        in notes(unseen)
    )
    assert notes(Verdict(verdict="not_asked")) == []
    interim = verdict("no_evidence", blocks=6, sign_flip_p=0.03125, interim=True)
    assert not any("sign-flip" in note for note in notes(interim))  # not valid before the end


def test_after_an_open_end_the_way_on_is_said():
    v = verdict("no_evidence", blocks=6, rope_points=1.0, blocks_to_decide=34)
    assert notes(v)[-1] == (
        "About 28 blocks more would find a true difference of 1 points in 80 % of studies: run the same "
        "command again with --set protocol.blocks=34."
    )


def test_a_study_whose_end_was_planned_takes_no_more_blocks():
    v = verdict("no_evidence", blocks=6, rope_points=1.0, blocks_to_decide=34)
    found = (
        "About 28 blocks more would find a true difference of 1 points in 80 % of studies: a study "
    )
    planned = dataclasses.replace(v, looks=(4, 6), look=2)
    assert notes(planned)[-1] == (
        f"{found}ends with its last planned look, so they take a new one (--fork)."
    )
    spent = dataclasses.replace(v, out_of_budget=True)
    assert notes(spent)[-1] == f"{found}ends with its budget, so they take a new one (--fork)."


def test_where_blocks_do_not_help_it_is_said_what_would():
    v = verdict("no_evidence", blocks=6, rope_points=1.0, reach_points=1.7431, reach_limit="blocks")
    assert notes(v)[-1] == (
        "A true difference of 1 points is out of reach of more blocks: 200 in all would find 1.74 points or "
        "more. What would help: more confirm pairs or twins per block, or a recipe that varies less between "
        "seeds."
    )
    assert notes(replace(v, reach_limit="examples"))[-1].endswith(
        "What would help: more test examples: those there are differ too much between the arms."
    )


def test_equal_seconds_are_claimed_of_time_matched_alone():
    timed = replace(PLACEBO, reference="time_matched")
    v = verdict("better", comparisons={"aim - time_matched": timed})
    clauses = {
        "attributed": "better at equal training time too",
        "does_as_well": "the baseline, trained for the same time, does as well",
        "undecided": "at equal training time undecided (MDE 1.20 points)",
    }
    for outcome, clause in clauses.items():
        assert attribution(replace(v, attribution={"time_matched": outcome})) == clause
    stepped = replace(PLACEBO, reference="step_matched")
    v = verdict("better", comparisons={"aim - step_matched": stepped})
    assert attribution(replace(v, attribution={"step_matched": "attributed"})) == (
        "more than step_matched gives"
    )


def test_several_arms_have_a_clause_each():
    both = {"aim - frozen": PLACEBO, "aim - wide": replace(PLACEBO, reference="wide")}
    v = verdict(
        "better", comparisons=both, attribution={"frozen": "attributed", "wide": "undecided"}
    )
    assert sentence(v).endswith(
        "10 blocks), attributed to what the memory learned; against wide undecided (MDE 1.20 points)."
    )


def test_a_placebo_that_is_trained_after_a_better_verdict():
    later = {"comparisons": {"aim - baseline": MAIN}, "untrained": ("frozen",)}
    pending = verdict("better", attribution={"frozen": "pending"}, **later)
    assert sentence(pending).endswith("10 blocks), attribution open until frozen is trained.")
    assert not any("trained only after" in note for note in notes(pending))
    never = verdict("no_evidence", **later)
    assert "frozen is trained only after aim was found better: no attribution." in notes(never)


def test_declared_confounds_stand_in_the_sentence():
    named = {"stem_stride": "1 against 2", "epochs": ""}
    assert sentence(verdict("worse", declared_confounds=named)).endswith(
        "10 blocks). Declared confounds, in which the arms differ too: stem_stride (1 against 2); epochs."
    )
    withheld = verdict("withheld", reason="one", declared_confounds={"epochs": ""})
    assert sentence(withheld) == (
        "Verdict withheld: one. Declared confounds, in which the arms differ too: epochs."
    )


def test_a_design_chosen_for_one_arm_and_a_shortened_search_are_said():
    lines = notes(verdict("better", design_for=("aim",), search_fraction=0.2))
    assert lines[:2] == [
        "Every arm was tuned with n = 5 trials per block, each 20 % of a whole training; the expected-best gap "
        "needs at least 2 randomly drawn trials and 3 blocks.",
        "The add-on's design was chosen for aim alone, which favors it over other arms with the add-on.",
    ]


def test_planned_looks_are_said():
    """Three looks at 8, 12 and 20: the recalibrated level is 2.2 %."""
    at_look = verdict("better", blocks=12, looks=(8, 12, 20), look=2, alpha=0.0217)
    assert (
        "Look 2 of those planned at 8, 12 and 20 blocks: each is judged at 2.2 %, so that all together err "
        "in 5 %."
    ) in notes(at_look)
    between = replace(at_look, look=None, interim=True)
    assert (
        "Looks are planned at 8, 12 and 20 blocks; between them the interval is anytime-valid."
        in notes(between)
    )
    assert not any("ook" in note for note in notes(replace(between, extended=True)))


def test_an_end_by_the_budget_is_said():
    v = verdict("better", blocks=7, blocks_planned=10, out_of_budget=True)
    assert notes(v)[1] == "Ended after 7 of 10 blocks: the declared device hours allow no more."


def test_early_ends_and_failures_are_counted_apart():
    counts = {"baseline": budget(early=1, failed=2), "aim": budget(early=3)}
    assert notes(verdict("better", budget=counts))[1:] == [
        "Ended by the time limit, scored as they stood: baseline 1, aim 3.",
        "Failed or out of memory, without a score: baseline 2.",
    ]


def test_a_gap_that_closes_is_said_whatever_the_verdict():
    gap = Gap(trials=(2, 5), points=(2.0, 0.8), closing=True)
    assert notes(verdict("no_evidence", gap=gap))[0].endswith("The gap is still closing.")


def test_small_words():
    assert [signed(x) for x in (1.0, -0.4, 0.001, -0.001, None)] == [
        "+1.00",
        "−0.40",
        "0.00",
        "0.00",
        "—",
    ]
    assert span(None) == "unbounded"
    assert (count(1, "block"), count(1200, "step")) == ("1 block", "1,200 steps")
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 22, 113)] == [
        "1st", "2nd", "3rd", "4th", "11th", "22nd", "113th",
    ]  # fmt: skip
