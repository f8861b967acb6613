"""Every verdict from hand-made bits to its sentence: the numbers are worked out in the comments.

Six blocks, 100 test examples, one confirm pair; in block b an arm has so many right answers more than the
baseline, on examples 4b, 4b + 1...: a difference of one answer is one point.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aim_tune.ledger import History
from aim_tune.reporting.words import notes, sentence
from aim_tune.spec.request import Request
from aim_tune.spec.study import Study
from aim_tune.stats import Verdict, decide
from aim_tune.stats.simulate import Outcome, World, example_study, simulated_history

RISING = [1, 2, 3, 1, 2, 3]
"""Mean 2. Blocks: s^2/B = .8 / 6 = .133. Examples: 12 at 100/6, (12 x 277.8 - 100 x 4) / 99 / 100 = .296296,
the floor: error .544331. t(.975, 5) = 2.570582: half 1.39925; t(.95, 5) = 2.015048: half 1.09685. The true
difference found in 80 %: 3.513905 errors = 1.91."""
MIXED = [3, -2, 1, 2, -3, 0]
"""Mean .1667. Blocks: (27 - 1/6) / 5 / 6 = .894444. Examples: 11 at +-100/6, (11 x 277.8 - 100 / 36) /
9,900 = .308361. Cells: (109,983 - 2,683 - 18,317) / 495 / 600 = .299607. Error sqrt(.903198) = .950367:
half 2.44300, MDE 3.513905 x .950367 = 3.34."""


def play(gains: dict[str, list[int]], *, same: bool = False, examples: int = 100):
    """The trainings; `same`: the gain sits on the same examples in every block."""

    def train(request: Request, arm: str) -> Outcome:
        right = np.arange(examples) < examples // 2
        if request.test:
            gain = gains.get(arm, [0] * 6)[request.block]
            start = 0 if same else 4 * request.block
            for i in range(start, start + abs(gain)):
                right[examples // 2 + i if gain > 0 else i] = gain > 0
        return Outcome(val_accuracy=0.5, bits=right if request.test else None)

    return train


def study_of(*others: str, rope: float = 0.5, **protocol) -> Study:
    arms = ("baseline", "aim", *others)
    study = example_study(blocks=6, twins=1, confirm=1, arms=arms, rope_points=rope)
    return replace(study, protocol=replace(study.protocol, **protocol))


def judged(
    gains: list[int], *, rope: float = 0.5, same: bool = False, **others: list[int]
) -> Verdict:
    study = study_of(*others, rope=rope)
    return decide(study, simulated_history(study, play({"aim": gains, **others}, same=same)))


def unmarked(history: History) -> History:
    """The history without correctness per example."""
    for training in history.trainings.values():
        training.correct = None
    return history


FIGURES = "+2.00 points of test accuracy (95 % interval +0.60 to +3.40; 6 blocks) (not attributed to memory)."
MINUS = "−2.00 points of test accuracy (95 % interval −3.40 to −0.60; 6 blocks)."


@pytest.mark.parametrize(
    ("rope", "how"),
    [
        (0.5, "clearly better than baseline"),  # 2 - 1.39925 = .60 > .5
        (1.0, "better than baseline"),  # .60 < 1 and 2 + 1.09685 = 3.10 > 1
        (4.0, "better than baseline, but below the size you declared to matter"),  # 3.10 < 4
    ],
)
def test_better(rope, how):
    assert sentence(judged(RISING, rope=rope)) == f"aim is {how}: {FIGURES}"


@pytest.mark.parametrize(
    ("rope", "how"),
    [
        (0.5, "clearly worse than baseline"),
        (1.0, "worse than baseline"),
        (4.0, "worse than baseline, but below the size you declared to matter"),
    ],
)
def test_worse_mirrors_better_and_is_not_attributed(rope, how):
    assert sentence(judged([-d for d in RISING], rope=rope)) == f"aim is {how}: {MINUS}"


def test_better_and_worse_on_this_test_set():
    """d = 1 1 1 1 1 2, on the same examples: mean 1.1667, blocks (1/6) / 6 = .027778: half 2.570582 x
    .166667 = .42843. One example gives 100 in every block: s_example^2/n is about 1, so the crossed interval
    holds 0."""
    d = [1, 1, 1, 1, 1, 2]
    assert sentence(judged(d, same=True, rope=0.9)) == (
        "aim is better than baseline on this test set: +1.17 points of test accuracy (95 % interval +0.74 to "
        "+1.60; 6 blocks) (not attributed to memory)."
    )
    assert sentence(judged([-x for x in d], same=True)) == (
        "aim is clearly worse than baseline on this test set: −1.17 points of test accuracy (95 % interval "
        "−1.60 to −0.74; 6 blocks)."
    )


def test_equivalent():
    """+-1 of 1,000 answers: d = +-.1, s^2/B = .012 / 6 = .002 and hardly more crossed: half 2.015048 x
    .0447 = .09. Without correctness per example it is known for this test set only."""
    study = study_of()
    history = simulated_history(study, play({"aim": [1, -1] * 3}, examples=1000))
    text = "aim − baseline is 0.00 points (90 % interval −0.09 to +0.09; 6 blocks)."
    head = "aim and baseline are equivalent within ±0.5 points"
    assert sentence(decide(study, history)) == f"{head}: {text}"
    assert sentence(decide(study, unmarked(history))) == f"{head} on this test set: {text}"


def test_no_evidence():
    assert sentence(judged(MIXED)) == (
        "No evidence either way: aim − baseline is +0.17 points (95 % interval −2.28 to +2.61; 6 blocks); "
        "this study could have seen a difference of 3.34 points or more."
    )


def test_withheld_and_not_asked():
    study = study_of()
    history = simulated_history(study, play({"aim": RISING}))
    for training in history.rows("confirm", "aim"):  # 6 x 300 instead of 6 x 600: 12 trainings each
        training.result = replace(training.result, allotted_steps=600)
    assert sentence(decide(study, history)) == (
        "Verdict withheld: the arms' budgets were not equal (steps allotted: baseline 3,600, aim 5,400)."
    )
    plain = replace(study, arms=("aim",))
    assert sentence(decide(plain, simulated_history(plain, play({})))) == (
        "No comparison was asked: plain search (aim 12 trainings)."
    )


def test_one_block_is_configuration_against_configuration():
    study = replace(study_of(), protocol=replace(study_of().protocol, blocks=1))
    assert sentence(decide(study, simulated_history(study, play({"aim": [3]})))) == (
        "No evidence: with one block this is configuration A against configuration B; aim − baseline is "
        "+3.00 points. Judged by a single search, 12 to 28 % of studies without any true effect declare a "
        "winner."
    )


CLAUSES = {
    "frozen": (
        "attributed to what the memory learned",
        "a frozen random memory does as well",
        "attribution undecided (MDE 3.20 points)",
        "a frozen random memory does better",
    ),
    "wide": (
        "more than wide gives",
        "wide does as well",
        "against wide undecided (MDE 3.20 points)",
        "wide does better",
    ),
    "any_other": (
        "more than any_other gives",
        "any_other does as well",
        "against any_other undecided (MDE 3.20 points)",
        "any_other does better",
    ),
    "time_matched": (
        "better at equal training time too",
        "the baseline, trained for the same time, does as well",
        "at equal training time undecided (MDE 3.20 points)",
        "the baseline, trained for the same time, does better",
    ),
}


@pytest.mark.parametrize("arm", CLAUSES)
def test_attribution_has_its_outcomes_for_every_other_arm(arm):
    """Against 0s: 2 +- 3.163381 (t at .05 / 2, Holm) x .544331 = .28 to 3.72. Against the same: 0 everywhere.
    Against 3 0 3 0 3 0: d = -2 2 0 1 -1 3, blocks 3.5 / 6, examples .25, cells .246633: error .765964; both
    comparisons stay at .025 (p = .54 and .076), where 80 % need 4.17700 errors: 3.20. Against 9s: below 0."""
    others = ([0] * 6, RISING, [3, 0] * 3, [9, 8] * 3)
    for gains, clause in zip(others, CLAUSES[arm], strict=True):
        assert sentence(judged(RISING, **{arm: gains})).endswith(f"6 blocks), {clause}.")


def test_attribution_stays_unsaid_unless_better():
    v = judged(MIXED, frozen=[0] * 6)
    assert v.attribution == {"frozen": "undecided"}
    assert "attribut" not in sentence(v)


def test_a_placebo_that_is_to_be_trained_after_a_better_verdict():
    """Only baseline and aim are in the ledger; the study asks for frozen once aim is better."""
    study, first = study_of("frozen", attribution="after_better"), study_of()
    better = decide(study, simulated_history(first, play({"aim": RISING})))
    assert (better.attribution, better.untrained) == ({"frozen": "pending"}, ("frozen",))
    assert sentence(better).endswith("6 blocks), attribution open until frozen is trained.")
    assert (better.verdict, better.interim, set(better.budget)) == (
        "better",
        False,
        {"baseline", "aim"},
    )
    is_open = decide(study, simulated_history(first, play({"aim": MIXED})))
    assert (is_open.attribution, is_open.untrained) == ({}, ("frozen",))
    assert "frozen is trained only after aim was found better: no attribution." in notes(is_open)


def test_divergence_is_counted_in_the_sentence_whatever_the_verdict():
    study, inner = study_of(), play({"aim": MIXED})

    def diverging(request, arm):
        bad = request.position in ("block/0/twin/0", "block/3/confirm/0") and arm == "baseline"
        return replace(inner(request, arm), status="diverged" if bad else "ok")

    assert sentence(decide(study, simulated_history(study, diverging))).endswith(
        "3.34 points or more. Diverged trainings, scored as they ended: baseline 2."
    )


def test_declared_confounds_and_a_design_for_one_arm_reach_the_verdict():
    study = study_of("frozen")
    explore = replace(study.protocol.explore, trials=3, arms=("baseline", "aim"))
    study = replace(
        study,
        protocol=replace(study.protocol, explore=explore),
        declared_confounds={"resolution": "aim 64 px, baseline 32 px"},
    )
    v = decide(study, simulated_history(study, play({"aim": RISING})))
    assert v.design_for == ("aim",)
    assert sentence(v).endswith(
        "Declared confounds, in which the arms differ too: resolution (aim 64 px, baseline 32 px)."
    )


def test_the_number_of_the_study_stands_beside_every_verdict():
    study = study_of()
    for gains in (RISING, MIXED, [0] * 6, [-d for d in RISING]):
        history = simulated_history(study, play({"aim": gains}))
        assert notes(decide(study, history, study_number=3))[-1] == "3rd study on this test data."


def test_points_that_tpe_proposed_are_said_and_give_no_gap():
    """Trials that build on one another are not exchangeable: no expected best."""
    world = World(effects={})
    for sampler, known in (("random", True), ("tpe", False)):
        study = replace(study_of(), protocol=replace(study_of().protocol, twins=4, sampler=sampler))
        v = decide(study, simulated_history(study, world.play))
        assert (v.sampler, v.gap is not None) == (sampler, known)
        said = any("n = 4 trials per block proposed by TPE;" in note for note in notes(v))
        assert said is not known
