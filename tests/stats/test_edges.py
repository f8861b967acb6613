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


def narrowed_study() -> Study:
    """24 explore trials; blocks that draw from what was good there."""
    study = study_of({"x": Uniform(0.0, 1.0)}, explore=24)
    explore = replace(study.protocol.explore, narrow=True)
    return replace(study, protocol=replace(study.protocol, explore=explore))


def told(study: Study, explored, drawn) -> History:
    """Explore trials at 0, 1/23, ... scored by `explored(arm, x)`; twins at the `drawn` values."""
    history = History()
    places = {f"explore/{i}": i / 23 for i in range(24)}
    places |= {f"block/{b}/twin/{i}": x for b in range(6) for i, x in enumerate(drawn)}
    for position, x in places.items():
        arms = {arm: {"shared": {"x": x}, "addon": {}} for arm in study.arms}
        request = Request.from_dict(
            {"position": position, "arms": list(arms.items()), "streams": {}, "turn": 0, "test": False}
        )  # fmt: skip
        asked = {"event": "asked", "position": position, "request": request.to_dict()}
        history.apply(asked)
        for arm in study.arms:
            score = explored(arm, x) if position.startswith("explore") else x
            result = {"arm": arm, "status": "ok", "val_accuracy": score}
            head = {"position": position, "arm": arm, "attempt": 1}
            history.apply({"event": "training_done", **head, "result": result})
        history.apply({"event": "request_done", "position": position, "test": {}})
    return history


def test_an_end_that_explore_has_cut_is_still_worth_a_warning_and_says_so():
    """Good in explore: 6 of 24 around 0.3, so up to 9/23; the blocks draw up to 0.1 more, and the more the
    better there: the arms choose 0.5, beyond all that was good."""
    study = narrowed_study()
    history = told(study, lambda arm, x: -abs(x - 0.3), [0.2, 0.3, 0.4, 0.5])
    first, second = edges(study, history, range(6))
    assert (first.arm, first.end, first.narrowed) == ("baseline", "high", True)
    assert first.limit == pytest.approx(9 / 23 + 0.1, abs=0.05)
    assert second.arm == "aim"
    verdict = Verdict(verdict="no_evidence", edges=(first,))
    assert "where explore has cut it): its best may lie beyond. Search without narrow" in str(
        notes(verdict)
    )


def test_the_outer_quarter_of_a_cut_range_is_no_edge():
    """0.38 is chosen: in the outer quarter of what is drawn from, but good in explore."""
    study = narrowed_study()
    history = told(study, lambda arm, x: -abs(x - 0.3), [0.2, 0.25, 0.3, 0.38])
    assert edges(study, history, range(6)) == ()
