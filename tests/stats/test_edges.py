"""Warnings of a range that cuts an arm short: by hand, and how seldom chance gives one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aim_tune.ledger import History
from aim_tune.reporting.words import notes
from aim_tune.spec.request import Request
from aim_tune.spec.space import Choice, IntUniform, Uniform
from aim_tune.spec.study import Study
from aim_tune.spec.values import derive_seed
from aim_tune.stats.edges import edges, share_of_range
from aim_tune.stats.simulate import Outcome, example_study, simulated_history
from aim_tune.stats.verdict import Verdict, decide

BITS = np.ones(10, dtype=bool)
LR = {"lr": Uniform(1e-3, 1e-1, log=True)}


def study_of(shared, **protocol) -> Study:
    plan = {"blocks": 6, "twins": 4, "confirm": 1, "arms": ("baseline", "aim"), **protocol}
    return replace(example_study(**plan), shared=shared)


def judged_by(rule):
    """Play: validation accuracy is rule(arm, shared settings)."""

    def play(request: Request, arm: str) -> Outcome:
        return Outcome(val_accuracy=rule(arm, request.arms[arm].shared), bits=BITS)

    return play


def rising_in_the_baseline(arm, shared):
    place = share_of_range(LR["lr"], shared["lr"])
    return 0.5 + 0.1 * place if arm == "baseline" else 0.6 - 0.1 * (place - 0.5) ** 2


def history_of(study: Study, rule) -> History:
    return simulated_history(study, judged_by(rule))


def test_an_arm_that_always_takes_the_largest_value_is_named_with_the_end():
    study = study_of(LR)
    (edge,) = edges(study, history_of(study, rising_in_the_baseline), range(6))
    assert (edge.arm, edge.setting, edge.end, edge.limit) == ("baseline", "lr", "high", 0.1)
    assert edge.blocks == 6
    assert 0.0316 < edge.median <= 0.1  # the outer quarter of two decades
    assert edge.drift > 1.96  # two ends of one setting at 10 %: the quantile of 5 %, two-sided


def test_the_drift_by_hand():
    """Two values per block, the larger one always taken: moved by half their distance each time, and
    the variance of a fair choice is the square of that, so six equal blocks give sqrt(6)."""
    study = study_of({"batch_size": IntUniform(1, 101)}, twins=2)
    history = history_of(study, lambda arm, shared: shared["batch_size"] / 200)
    for row in history.rows("twin"):
        row.point.shared["batch_size"] = 101 if row.index else 1
        row.result = replace(row.result, val_accuracy=0.9 if row.index else 0.1)
    found = edges(study, history, range(6))
    assert [e.drift for e in found] == pytest.approx([6**0.5, 6**0.5], rel=1e-5)
    assert [e.median for e in found] == [101, 101]


def test_the_lower_end_mirrors_the_upper():
    study = study_of(LR)
    found = edges(study, history_of(study, lambda arm, shared: 0.5 - shared["lr"]), range(6))
    assert [(e.arm, e.end, e.limit) for e in found] == [
        ("baseline", "low", 0.001), ("aim", "low", 0.001),
    ]  # fmt: skip


def test_an_optimum_inside_gives_no_warning():
    study = study_of(LR)
    rule = lambda arm, shared: 0.6 - 0.1 * (share_of_range(LR["lr"], shared["lr"]) - 0.6) ** 2  # noqa: E731
    assert edges(study, history_of(study, rule), range(6)) == ()


@pytest.mark.parametrize("shared", [{}, {"optimizer": Choice(("adamw", "sgd"))}])
def test_what_has_no_ends_gives_no_warning(shared):
    study = study_of(shared)
    assert edges(study, history_of(study, lambda arm, shared: 0.5), range(6)) == ()


def test_one_twin_per_block_is_no_choice():
    study = study_of(LR, twins=1)
    assert edges(study, history_of(study, rising_in_the_baseline), range(6)) == ()


def test_blocks_that_do_not_count_are_not_looked_at():
    study = study_of(LR)
    assert edges(study, history_of(study, rising_in_the_baseline), ()) == ()


def test_scores_of_chance_seldom_warn():
    """No setting matters: at most 10 % per arm, less what the outer quarter takes; 20 % of 200 is 40."""
    study, count = study_of(LR, arms=("baseline",)), 0
    for seed in range(200):
        own = replace(study, protocol=replace(study.protocol, seed=seed))
        noise = lambda arm, shared, s=seed: derive_seed(s, shared["lr"]) / 2**64  # noqa: E731
        count += bool(edges(own, history_of(own, noise), range(6)))
    assert 1 <= count <= 30


def test_the_verdict_carries_the_warning_and_the_note_says_it():
    study = study_of(LR)
    verdict = decide(study, history_of(study, rising_in_the_baseline))
    assert [e.arm for e in verdict.edges] == ["baseline"]
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    (note,) = [line for line in notes(verdict) if "end of its range" in line]
    assert note.startswith("baseline keeps choosing lr at the high end of its range (median ")
    assert note.endswith("Widen the range before believing the difference.")
    old = {k: v for k, v in verdict.to_dict().items() if k != "edges"}
    assert Verdict.from_dict(old).edges == ()
