"""The verb retrain, on a tiny real study: the record is repeated bit for bit, or the reason is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest
import torch
from PIL import Image

from aim_tune import export, retrain
from aim_tune.artifacts.config import asked, read_config
from aim_tune.artifacts.network import load_model
from aim_tune.data.sealed import test_labels as sealed_labels
from aim_tune.data.source import open_source
from aim_tune.ledger import read_history
from aim_tune.spec.yaml_io import load_plain
from aim_tune.tables import HOUSE


@pytest.fixture
def config(tiny_results, tmp_path) -> Path:
    path = tmp_path / "best_config.yaml"
    assert export.main([str(tiny_results), "--arm", "aim", "-o", str(path)]) == 0
    return path


def run(config: Path, *options: str, tracking: str = "off") -> int:
    return retrain.main([str(config), "--tracking", tracking, "--forms", "weights", *options])


def test_the_recorded_curve_and_weights_come_again_bit_for_bit(
    config, tiny_results, tmp_path, capsys
):
    assert run(config, "--fail-unless-equal", "--out", str(tmp_path / "out")) == 0
    assert "equals the recorded one bit for bit" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    recorded = load_plain(config)["recorded"]
    assert [m["val_accuracy"] for m in metrics["curve"]] == recorded["val_accuracy"]
    assert metrics["result"]["weights_sha256"] == recorded["weights_sha256"]
    history = read_history(tiny_results / "ledger.jsonl")
    training = history.trainings[recorded["position"], "aim"]
    assert metrics["test_accuracy"] == training.test_accuracy


def test_the_saved_network_reaches_the_test_accuracy_that_was_reported(config, tmp_path):
    out = tmp_path / "out"
    assert run(config, "--out", str(out)) == 0
    model = load_model(out)
    study, _ = asked(read_config(out / "best_config.yaml"))
    source = open_source(study.data, HOUSE)
    with torch.inference_mode():
        batches = [model(x).argmax(1) for x in source.test_batches(32, torch.device("cpu"))]
    right = torch.cat(batches).numpy() == sealed_labels(study.data, HOUSE)
    metrics = json.loads((out / "metrics.json").read_text())
    assert right.mean() == pytest.approx(metrics["test_accuracy"])


def test_the_folder_holds_weights_card_metrics_and_configuration(config, capsys):
    assert run(config) == 0
    out = config.parent / "retrained" / "tiny-aim"
    assert {f.name for f in out.iterdir()} == {
        "weights.pt", "training.json", "metrics.json", "model_card.md", "model.json", "best_config.yaml",
        "examples",
    }  # fmt: skip
    card = (out / "model_card.md").read_text()
    assert card.startswith("# small_cnn on digits, arm aim\n")
    assert "one training on one test set" in card
    assert load_plain(config)["recorded"]["weights_sha256"] in card
    assert re.search(
        r"\*\*Test accuracy [\d.]+ %\*\* on 797 sealed test images \(95 % interval", card
    )
    state = torch.load(out / "weights.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in state.values())


def test_the_same_command_again_trains_nothing_twice(config, capsys):
    assert run(config) == 0
    out = config.parent / "retrained" / "tiny-aim"
    before = {f: f.stat().st_mtime_ns for f in out.iterdir() if f.is_file()}
    assert run(config) == 0
    said = capsys.readouterr().out
    assert "was trained before by the same command" in said
    assert {f: f.stat().st_mtime_ns for f in before} == before
    assert run(config, "--force") == 0
    assert (out / "weights.pt").stat().st_mtime_ns != before[out / "weights.pt"]


def test_another_network_that_is_there_is_not_replaced_by_accident(config, capsys):
    assert run(config) == 0
    weights = config.parent / "retrained" / "tiny-aim" / "weights.pt"
    before = weights.stat().st_mtime_ns
    assert run(config, "--seed", "3") == 2
    assert "holds another network already; --force replaces it" in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before
    assert run(config, "--seed", "3", "--force") == 0
    assert weights.stat().st_mtime_ns != before


def test_fresh_streams_give_another_network_and_say_so(config, capsys):
    assert run(config, "--seed", "5", "--fail-unless-equal") == 4
    out = capsys.readouterr().out
    assert "Another training than the recorded one, as asked:" in out
    assert "fresh random streams (--seed)" in out
    own = load_plain(config.parent / "retrained" / "tiny-aim" / "best_config.yaml")
    assert own["streams"] != load_plain(config)["streams"]


def test_what_set_changes_is_named_as_the_reason(config, capsys):
    assert run(config, "--set", "recipe.steps=4") == 0
    out = capsys.readouterr().out
    assert "4 steps" in out
    assert "changed by --set: recipe.steps=4" in out


@pytest.mark.parametrize(
    ("budget", "steps"), [(["--steps", "9"], 9), (["--epochs", "2"], 8)], ids=["steps", "epochs"]
)
def test_a_longer_budget_is_trained_and_named(config, capsys, budget, steps):
    assert run(config, *budget) == 0  # 60 training images, 16 at a time: 2 passes are 7.5 steps
    metrics = json.loads((config.parent / "retrained/tiny-aim/metrics.json").read_text())
    assert (metrics["result"]["steps"], metrics["result"]["allotted_steps"]) == (steps, steps)
    assert f"another budget ({' '.join(budget)})" in capsys.readouterr().out


def test_early_stopping_keeps_the_weights_of_the_best_pass(config):
    assert run(config, "--steps", "60", "--patience", "1", "--set", "recipe.evaluations=20") == 0
    out = config.parent / "retrained" / "tiny-aim"
    metrics = json.loads((out / "metrics.json").read_text())
    scores = [m["val_accuracy"] for m in metrics["curve"]]
    assert metrics["result"]["steps"] < 60
    assert metrics["result"]["val_accuracy"] == max(scores)
    assert "the best of" in (out / "model_card.md").read_text()


def test_several_seeds_and_both_arms_give_a_mean_and_a_spread(config, capsys):
    assert run(config, "--both", "--seeds", "2") == 0
    out = capsys.readouterr().out
    home = config.parent / "retrained" / "tiny"
    rows = json.loads((home / "summary.json").read_text())
    assert [row["folder"] for row in rows] == [
        "baseline-seed-1", "aim-seed-1", "baseline-seed-2", "aim-seed-2",
    ]  # fmt: skip
    for arm in ("baseline", "aim"):
        scores = [row["test_accuracy"] for row in rows if row["arm"] == arm]
        (line,) = [line for line in out.splitlines() if line.startswith(arm) and " points" in line]
        assert f"{50 * sum(scores):.2f} %" in line
        assert f"{100 * stdev(scores):.2f} points" in line
    streams = [load_plain(home / r["folder"] / "best_config.yaml")["streams"] for r in rows]
    assert streams[0] == streams[1] != streams[2] == streams[3]  # a seed is the same for both arms
    assert "are no comparison of arms" in out


def test_the_other_arm_repeats_its_own_record(config, capsys):
    assert run(config, "--arm", "baseline", "--fail-unless-equal") == 0
    assert (config.parent / "retrained" / "tiny-baseline" / "weights.pt").is_file()
    assert run(config, "--arm", "frozen") == 2
    assert "unknown arm 'frozen'; known: aim, baseline" in capsys.readouterr().err


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three classes of 24 x 20 photographs, told apart by their color; no test folder."""
    home, dice = tmp_path / "pictures", np.random.default_rng(0)
    for number, name in enumerate(("cat", "dog", "owl")):
        (home / "train" / name).mkdir(parents=True)
        for k in range(20):
            pixels = dice.integers(0, 120, (24, 20, 3), dtype=np.uint8)
            pixels[..., number] += 100
            Image.fromarray(pixels).save(home / "train" / name / f"{k}.png")
    return home


def test_own_images_with_other_classes_are_trained_on(config, pictures, capsys):
    assert run(config, "--data", str(pictures), "--epochs", "30") == 0
    out = capsys.readouterr().out
    assert (
        "Own data: 3 classes (cat, dog, owl), 39 images to train on, 9 to validate, 12 to test"
        in out
    )
    assert "A share of 0.2 of train/ is sealed as test" in out
    metrics = json.loads((config.parent / "retrained/tiny-aim/metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.9
    card = (config.parent / "retrained/tiny-aim/model_card.md").read_text()
    assert "3 classes: cat, dog, owl" in card
    assert "own data (--data" in card


@pytest.mark.parametrize(
    ("folder", "text"),
    [("nothing", "is not there; give a folder"), (".", "has no folder train/ with one folder per class")],
)  # fmt: skip
def test_a_wrong_data_folder_says_what_is_expected(config, tmp_path, folder, text, capsys):
    assert run(config, "--data", str(tmp_path / folder)) == 2
    assert text in capsys.readouterr().err


def test_another_device_can_be_asked_for(config, capsys):
    assert run(config, "--device", "cpu", "--fail-unless-equal") == 0
    if not torch.cuda.is_available():
        assert run(config, "--device", "cuda", "--out", str(config.parent / "gpu")) == 2
        assert "no CUDA device" in capsys.readouterr().err


def edited(config: Path, old: str, new: str) -> Path:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    return config


def test_other_versions_and_data_are_named_where_the_curve_differs(config, capsys):
    digest = load_plain(config)["provenance"]["data_digest"]
    edited(config, f"data_digest: {digest}", "data_digest: 0123456789abcdef")
    first = load_plain(config)["recorded"]["val_accuracy"][0]
    edited(config, f"val_accuracy: [{first}", f"val_accuracy: [{first + 0.01}")
    edited(config, "torch: ", "torch: 0.0.")
    assert run(config) == 0
    out = capsys.readouterr().out
    assert "other data: digest 0123456789abcdef then" in out
    assert "torch 0.0." in out


def test_a_difference_without_a_reason_asks_for_a_report(config, capsys):
    first = load_plain(config)["recorded"]["val_accuracy"][0]
    edited(config, f"val_accuracy: [{first}", f"val_accuracy: [{first + 0.01}")
    assert run(config) == 0
    assert "no reason known" in capsys.readouterr().out


def test_a_plain_study_file_is_no_configuration(tiny_results, capsys):
    assert run(tiny_results / "study.yaml") == 2
    assert "is no exported configuration" in capsys.readouterr().err


def test_a_configuration_that_lacks_a_part_is_refused(config, capsys):
    text = config.read_text()
    config.write_text(text.replace("streams:", "strems:"))
    assert run(config) == 2
    assert "lacks streams; export it again" in capsys.readouterr().err


def test_all_faults_of_an_edited_study_are_told_with_its_file(config, capsys):
    edited(config, "batch_size: 16", "batch_size: -1")
    edited(config, "name: small_cnn", "name: smal_cnn")
    assert run(config) == 2
    error = capsys.readouterr().err
    assert "2 faults in the study" in error
    assert f"{config}, study: recipe.batch_size" in error
    assert "did you mean 'small_cnn'?" in error
    assert not (config.parent / "retrained").exists()


def test_a_server_that_is_not_there_is_told_before_the_training(config, capsys):
    uri = "http://127.0.0.1:9"
    assert run(config, "--tracking-uri", uri, tracking="on") == 2
    assert f"no MLflow at {uri}" in capsys.readouterr().err
    assert not (config.parent / "retrained").exists()
    assert run(config, "--tracking-uri", uri, tracking="optional") == 0


def test_the_retraining_is_one_run_in_mlflow_and_one_version_of_a_model(
    tiny_results, tmp_path, capsys
):
    from mlflow.tracking import MlflowClient

    home = tmp_path / "results" / "tiny"
    home.mkdir(parents=True)
    shutil.copy(tiny_results / "ledger.jsonl", home / "ledger.jsonl")
    assert export.main([str(home), "--arm", "aim"]) == 0
    uri = f"sqlite:///{tmp_path}/results/mlflow.db"
    asked = (home / "best_config.yaml", "--tracking-uri", uri, "--register", "tiny_net")
    assert run(*asked, tracking="on") == 0
    said = capsys.readouterr().out
    assert "In MLflow: experiment aim_tune/tiny/retrained" in said
    assert "as models:/tiny_net/1" in said
    assert "loaded again: same class for 128 of 128 test images" in said
    assert run(*asked, tracking="on") == 0  # adds neither run nor version
    assert "Registered before as models:/tiny_net/1" in capsys.readouterr().out
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("aim_tune/tiny/retrained")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["aim.phase"] == "retrained"
    assert len(client.get_metric_history(logged.info.run_id, "val/accuracy")) == 3
    assert "test/accuracy" in logged.data.metrics
    assert logged.data.tags["mlflow.note.content"].startswith("# small_cnn on digits")
    (made,) = client.search_model_versions("name = 'tiny_net'")
    assert made.run_id == logged.info.run_id
    assert made.description.startswith("# small_cnn on digits")


def test_a_registered_model_predicts_what_the_trained_one_does(config, tmp_path, capsys):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert run(config, "--tracking-uri", uri, "--register", "net", tracking="on") == 0
    out = config.parent / "retrained" / "tiny-aim"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        registered = mlflow.pyfunc.load_model("models:/net/1")
    finally:
        mlflow.set_tracking_uri(before)
    study, _ = asked(read_config(out / "best_config.yaml"))
    source = open_source(study.data, HOUSE)
    (images,) = list(source.test_batches(797, torch.device("cpu")))
    with torch.inference_mode():
        expected = load_model(out)(images)
    found = torch.from_numpy(registered.predict(source.pixels(images).numpy()))
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert torch.allclose(found, expected, atol=1e-5)
    assert registered.metadata.signature.inputs.inputs[0].shape == (-1, 3, 16, 16)
    assert registered.metadata.saved_input_example_info is not None


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--register", "a/b"], "none of them /"), (["--seeds", "0"], "give 1 or more"),
     (["--forms", "weights,onx"], "'onx' is none of weights, program, onnx"),
     (["--epochs", "2", "--steps", "3"], "not allowed with argument"),
     (["--epoch", "x"], "invalid"), (["--register", "a", "--tracking", "off"], "--register needs MLflow")],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_starts(config, options, text, capsys):
    try:
        code = retrain.main([str(config), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert text in capsys.readouterr().err
    assert not (config.parent / "retrained").exists()


def test_without_a_network_load_model_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"no network in .* run python -m aim_tune.retrain first"):
        load_model(tmp_path)
