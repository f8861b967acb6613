"""What a run shall hold, computed from small ledgers without MLflow."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aim_tune.ledger import History
from aim_tune.stats import slot_use
from aim_tune.stats.simulate import World, example_study, simulated_history
from aim_tune.stats.verdict import decide
from aim_tune.tracking.content import training_content, verdict_content
from aim_tune.tracking.notes import experiment_note, verdict_note


@pytest.fixture
def history(records) -> History:
    history = History()
    for record in records:
        history.apply(record)
    return history


def metrics(content) -> dict[str, float]:
    return {r.key: r.value for r in content.readings}


def test_every_run_carries_every_grouping_tag(study, history):
    contents = [training_content(study, history, t) for t in history.rows()]
    contents.append(verdict_content(study, history, {"verdict": "no_evidence"}, "Nothing seen."))
    for content in contents:
        for tag in ("comparison", "arm", "phase", "block", "pair", "status"):
            assert content.tags[f"aim.{tag}"], content.name
        assert content.tags["aim_tune.key"] == content.key
    assert len({c.key for c in contents}) == len(contents) == 19


def test_the_key_is_study_hash_position_and_arm(study, history):
    content = training_content(study, history, history.trainings["block/1/twin/0", "aim"])
    assert content.key == f"{study.study_hash}/block/1/twin/0/aim"
    assert (content.tags["aim.block"], content.tags["aim.phase"]) == ("1", "twin")
    assert content.name == "aim block/1/twin/0"


def test_blocks_that_were_added_do_not_change_the_keys(study, history):
    more = replace(study, protocol=replace(study.protocol, blocks=4))
    training = history.trainings["block/0/twin/0", "aim"]
    assert training_content(more, history, training).key.startswith(study.study_hash)


def test_validation_is_logged_at_each_pass_with_its_step(study, history):
    training = history.trainings["block/0/twin/0", "aim"]
    readings = training_content(study, history, training).readings
    curve = [(r.step, r.value) for r in readings if r.key == "val/accuracy"]
    assert curve == [(m.step, m.val_accuracy) for m in training.curve]
    assert len(curve) == 10


def test_test_figures_stand_on_confirm_runs_only(study, history):
    for training in history.rows():
        names = metrics(training_content(study, history, training))
        assert ("test/accuracy" in names) == (training.stage == "confirm")
        assert ("delta/test_accuracy" in names) == (
            training.stage == "confirm" and training.arm != "baseline"
        )


def test_delta_is_the_arm_minus_the_baseline_of_the_same_pair(study, history):
    position = "block/1/confirm/0"
    history.trainings[position, "aim"].test_accuracy = 0.75
    history.trainings[position, "baseline"].test_accuracy = 0.5
    found = metrics(training_content(study, history, history.trainings[position, "aim"]))
    assert found["delta/test_accuracy"] == 0.25
    assert (found["test/accuracy"], found["test/error"]) == (0.75, 0.25)


def test_numbers_that_are_not_finite_are_left_out(study, history):
    training = history.trainings["block/0/twin/0", "aim"]
    training.curve[3] = replace(training.curve[3], val_loss=math.nan, train_loss=math.inf)
    step = training.curve[3].step
    readings = training_content(study, history, training).readings
    assert {r.key for r in readings if r.step == step} == {"val/accuracy", "train/lr"}


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("running", "RUNNING"),
        ("asked", "KILLED"),
        ("ok", "FINISHED"),
        ("diverged", "FINISHED"),
        ("timeout", "FINISHED"),
        ("pruned", "FINISHED"),
        ("failed", "FAILED"),
        ("oom", "FAILED"),
    ],
)
def test_each_status_of_a_training_has_one_of_mlflow(study, history, status, shown):
    training = replace(history.trainings["block/0/twin/0", "aim"], status=status)
    content = training_content(study, history, training)
    assert content.status == shown
    assert content.tags["aim.status"] == ("interrupted" if status == "asked" else status)


def test_the_content_of_a_ledger_is_always_the_same(study, records):
    def digests() -> list[str]:
        history = History()
        for record in records:
            history.apply(record)
        return [training_content(study, history, t).digest for t in history.rows()]

    assert digests() == digests()


def test_the_digest_notices_a_changed_metric(study, history):
    training = history.trainings["block/0/confirm/0", "aim"]
    before = training_content(study, history, training).digest
    training.test_accuracy = 0.123
    assert training_content(study, history, training).digest != before


def test_params_name_the_part_they_belong_to(study, history):
    aim = training_content(study, history, history.trainings["block/0/twin/0", "aim"]).params
    assert {"shared.lr", "addon.memory_shape", "seed.order"} <= set(aim)
    assert aim["addon.memory_shape"] in ("[4, 4, 16]", "[2, 2, 64]")
    baseline = history.trainings["block/0/twin/0", "baseline"]
    assert not any(
        p.startswith("addon.") for p in training_content(study, history, baseline).params
    )


def test_the_verdict_is_newer_than_every_training(study, history):
    for training in history.rows():
        training.started += 1e9  # a clock that went wrong
    content = verdict_content(study, history, {"verdict": "better"}, "Better.")
    assert content.start_ms > max(1000 * t.started for t in history.rows())


def test_the_note_says_the_sentence_and_shows_both_tables():
    study = example_study(blocks=3, twins=1, confirm=1)
    verdict = decide(
        study,
        simulated_history(
            study, World(effects={"aim": 1.0, "frozen": 0.0}, test_examples=200).play
        ),
    ).to_dict()
    note = verdict_note(verdict, "What was found.")
    assert note.startswith("What was found.\n\n| arm | test accuracy |")
    assert "\n| baseline&emsp; | " in note
    assert "\n| aim - baseline&emsp; | " in note
    assert " of 3&emsp; |" in note
    assert "%, nan" not in note


def test_a_study_has_a_description_before_it_has_a_verdict(study):
    assert "Does it help to add aim and frozen to resnet8 on digits?" in experiment_note(study)
    assert experiment_note(study, "Better.").startswith("Better.\n")


def test_the_study_s_cost_stands_on_the_verdict_run(study, history):
    found = metrics(verdict_content(study, history, {"verdict": "no_evidence"}, "Nothing seen."))
    assert found["cost/trainings"] == 18
    assert found["cost/training_hours"] == pytest.approx(18 * 2 / 3600)
    assert "cost/gpu_hours" not in found
    training = history.trainings["block/0/twin/0", "aim"]
    training.result = replace(training.result, device="cuda: NVIDIA H200", seconds=3600.0)
    found = metrics(verdict_content(study, history, {"verdict": "no_evidence"}, "Nothing seen."))
    assert found["cost/gpu_hours"] == 1.0


def test_the_use_of_the_slots_stands_on_the_verdict_run(study, history):
    empty = metrics(verdict_content(study, history, {"verdict": "no_evidence"}, "Nothing seen."))
    assert "cost/slots" not in empty  # a ledger of a version that kept no slots
    history.runs.append((0.0, 2))
    found = metrics(verdict_content(study, history, {"verdict": "no_evidence"}, "Nothing seen."))
    assert found["cost/slots"] == 2
    assert found["cost/slot_share"] == slot_use(study, history).share
    assert 0 < found["cost/slot_share"] < 0.5  # one at a time, on two slots


def test_what_a_training_took_has_the_names_of_mlflow_s_system_metrics(study, history):
    training = history.trainings["block/0/twin/0", "aim"]
    training.result = replace(training.result, cpu_percent=97.0, rss_mib=640.0, peak_mib=None)
    found = metrics(training_content(study, history, training))
    assert {k: v for k, v in found.items() if k.startswith("system/")} == {
        "system/cpu_utilization_percentage": 97.0, "system/process_memory_mebibytes": 640.0,
    }  # fmt: skip


def test_the_note_shows_the_picture_of_its_own_run():
    note = verdict_note({"verdict": "no_evidence"}, "Nothing seen.", pictured=True)
    assert note.splitlines()[2] == (
        "![The verdict](get-artifact?path=verdict.png&run_uuid=RUN_ID_OF_THE_VERDICT)"
    )
    assert "![" not in verdict_note({"verdict": "no_evidence"}, "Nothing seen.")
