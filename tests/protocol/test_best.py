"""best_config: chosen by validation, expected from all confirm runs, refused where it would mislead."""

from __future__ import annotations

import json

import pytest

from aim_tune.errors import UserError
from aim_tune.protocol.best import best_config
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import study_status


def by_block(request):
    """Confirm runs are best in block 1, twins in block 2: aim above frozen above the baseline."""
    level = {"confirm": {0: 0.70, 1: 0.80, 2: 0.75}, "twin": {0: 0.8, 1: 0.8, 2: 0.99}}
    base = level.get(request.stage, {}).get(request.block, 0.5)
    number = int(request.position.split("/")[-1])
    bonus = {"baseline": 0.0, "aim": 0.02, "frozen": 0.01}
    return {arm: base + bonus[arm] - 0.001 * number for arm in request.arms}


@pytest.fixture
def study(sim) -> Study:
    return sim.study_of(explore=3, blocks=3, twins=3, confirm=2)


def test_the_point_is_the_best_by_confirm_validation_and_its_expected_score_a_mean(
    study, history_of
):
    history = history_of(study, trainer=by_block)
    verdict = {"verdict": "better", "arm": "aim"}
    config = best_config(study, history, verdict, sentence="AiM is better.")
    assert config["arm"] == "aim"
    assert config["recorded"]["position"] == "block/1/confirm/0"
    training = history.trainings["block/1/confirm/0", "aim"]
    assert config["point"] == training.point.to_dict()
    assert config["streams"] == training.streams
    assert config["recorded"]["steps"] == [50, 100]
    assert config["recorded"]["val_accuracy"] == pytest.approx([0.41, 0.82])
    assert config["recorded"]["weights_sha256"] == "ab"
    expected = config["expected"]
    assert expected["n_confirm"] == 6
    assert expected["n_blocks"] == 3
    # mean of 0.70, 0.80, 0.75, plus 0.02, less 0.0005 on average, less 0.05 on test
    assert expected["test_accuracy"] == pytest.approx(0.7195)
    assert expected["val_accuracy"] == pytest.approx(0.7695)
    assert config["provenance"] == {
        "study_name": "simulated",
        "study_hash": study.study_hash,
        "code_hash": "c0de",
        "data_digest": "d1ce",
        "versions": {"torch": "2.15.0"},
        "seed": 0,
        "status": "complete",
        "verdict": "better",
        "sentence": "AiM is better.",
    }
    assert Study.from_dict(json.loads(json.dumps(config["study"]))).study_hash == study.study_hash


@pytest.mark.parametrize(
    ("word", "arm"),
    [("worse", "baseline"), ("no_evidence", "baseline"), ("equivalent", "baseline")],
)
def test_without_a_better_the_baseline_is_kept(study, history_of, word, arm):
    history = history_of(study, trainer=by_block)
    verdict = {"verdict": word, "arm": "aim"}
    assert best_config(study, history, verdict)["arm"] == arm
    assert best_config(study, history, verdict, arm="frozen")["arm"] == "frozen"


def test_plain_search_keeps_the_best_arm_and_promises_no_test_score(sim, history_of):
    study = sim.study_of(explore=5, blocks=0)
    history = history_of(
        study,
        trainer=lambda r: {"baseline": 0.1, "aim": 0.2, "frozen": 0.9 - 0.1 * len(r.position)},
    )
    history.trainings["explore/3", "aim"].result = None
    config = best_config(study, history, {"verdict": "not_asked"})
    assert config["arm"] == "aim"
    assert config["recorded"]["position"] == "explore/0"
    assert config["expected"]["test_accuracy"] is None
    assert "search maximum is no estimate" in config["expected"]["note"]


def test_duplicates_in_explore_are_not_recorded_trainings(sim, history_of):
    study = sim.study_of(arms=("baseline",), explore=6, blocks=0, shared={}, addon=None)
    history = history_of(study, trainer=lambda r: {"baseline": 0.5})
    config = best_config(study, history, None)
    assert config["recorded"]["position"] == "explore/0"


def test_an_unfinished_study_is_refused_unless_allowed(study, history_of):
    history = history_of(study, trainer=by_block, stop_after=9)
    with pytest.raises(UserError, match=r"unfinished: 9 of 18 requests .*--allow-unfinished"):
        best_config(study, history, None)
    config = best_config(study, history, None, "aim", allow_unfinished=True)
    assert config["provenance"]["status"] == "unfinished"
    assert config["expected"]["n_confirm"] == 2


def test_blocks_that_were_added_have_to_be_finished_too(study, history_of):
    history = history_of(study, trainer=by_block)
    assert study_status(study, history) == "complete"
    history.apply({"event": "extended", "blocks": 4})
    assert study_status(study, history) == "unfinished"


def test_a_failed_study_is_refused_unless_allowed(study, history_of):
    history = history_of(study, trainer=lambda r: {**by_block(r), "frozen": None})
    assert study_status(study, history) == "failed"
    with pytest.raises(UserError, match=r"failed: 18 of 54 trainings .*\(at most 20% may\)"):
        best_config(study, history, None)
    config = best_config(study, history, {"verdict": "withheld"}, "aim", allow_unfinished=True)
    assert config["provenance"]["status"] == "failed"
    with pytest.raises(UserError, match="arm 'frozen' has no finished training"):
        best_config(study, history, None, "frozen", allow_unfinished=True)


def test_an_unknown_arm_names_the_known_ones(study, history_of):
    with pytest.raises(
        UserError, match=r"unknown arm 'amy'; did you mean 'aim'\? known: aim, base"
    ):
        best_config(study, history_of(study, trainer=by_block), None, "amy")
