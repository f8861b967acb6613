"""The verb retrain, on a tiny real study: the record is repeated bit for bit, or the reason is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from aim_tune import export, retrain, search
from aim_tune.data.sealed import test_labels as sealed_labels
from aim_tune.data.source import open_source
from aim_tune.ledger import read_history
from aim_tune.spec.yaml_io import load_plain
from aim_tune.tables import HOUSE

STUDY = """
name: tiny
backbone: {name: small_cnn, width: 8}
data: {name: digits, image_size: 16, train_images: 60, val_images: 40}
arms: [baseline, aim]
recipe: {steps: 6, batch_size: 16, evaluations: 3, augment: [flip]}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [2, 2, 8]}
protocol: {explore: {trials: 0}, blocks: 1, twins: 1, confirm: 1}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/tiny of a real study."""
    home = tmp_path_factory.mktemp("retrain")
    (home / "tiny.yaml").write_text(STUDY)
    out = home / "results"
    options = ["--engine", "in_process", "--tracking", "off", "--quiet"]
    assert search.main([str(home / "tiny.yaml"), "--out", str(out), *options]) == 0
    return out / "tiny"


@pytest.fixture
def config(results, tmp_path) -> Path:
    path = tmp_path / "best_config.yaml"
    assert export.main([str(results), "--arm", "aim", "-o", str(path)]) == 0
    return path


def run(config: Path, *options: str, tracking: str = "off") -> int:
    return retrain.main([str(config), "--tracking", tracking, *options])


def test_the_recorded_curve_and_weights_come_again_bit_for_bit(config, results, tmp_path, capsys):
    assert run(config, "--fail-unless-equal", "--out", str(tmp_path / "out")) == 0
    assert "equals the recorded one bit for bit" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    recorded = load_plain(config)["recorded"]
    assert [m["val_accuracy"] for m in metrics["curve"]] == recorded["val_accuracy"]
    assert metrics["result"]["weights_sha256"] == recorded["weights_sha256"]
    history = read_history(results / "ledger.jsonl")
    training = history.trainings[recorded["position"], "aim"]
    assert metrics["test_accuracy"] == training.test_accuracy


def test_the_saved_network_reaches_the_test_accuracy_that_was_reported(config, tmp_path):
    out = tmp_path / "out"
    assert run(config, "--out", str(out)) == 0
    model = retrain.load_model(out)
    study, _, _ = retrain._asked(load_plain(out / "best_config.yaml"))
    source = open_source(study.data, HOUSE)
    with torch.inference_mode():
        batches = [model(x).argmax(1) for x in source.test_batches(32, torch.device("cpu"))]
    right = torch.cat(batches).numpy() == sealed_labels(study.data, HOUSE)
    metrics = json.loads((out / "metrics.json").read_text())
    assert right.mean() == pytest.approx(metrics["test_accuracy"])


def test_the_folder_holds_weights_card_metrics_and_configuration(config, capsys):
    assert run(config) == 0
    out = config.parent / "retrained" / "tiny-aim"
    assert {f.name for f in out.iterdir()} - {"checkpoints"} == set(retrain.FILES)
    card = (out / "model_card.md").read_text()
    assert card.startswith("# small_cnn on digits, arm aim\n")
    assert f'load_model("{out.as_posix()}")' in card
    assert "one training on one test set" in card
    state = torch.load(out / "weights.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in state.values())


def test_a_network_that_is_there_is_not_replaced_by_accident(config, capsys):
    assert run(config) == 0
    weights = config.parent / "retrained" / "tiny-aim" / "weights.pt"
    before = weights.stat().st_mtime_ns
    assert run(config) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before
    assert run(config, "--force") == 0
    assert weights.stat().st_mtime_ns != before


def test_fresh_streams_give_another_network_and_say_so(config, capsys):
    assert run(config, "--seed", "5", "--fail-unless-equal") == 4
    out = capsys.readouterr().out
    assert "differs from the recorded one" in out
    assert "fresh random streams (--seed)" in out
    own = load_plain(config.parent / "retrained" / "tiny-aim" / "best_config.yaml")
    assert own["streams"] != load_plain(config)["streams"]


def test_what_set_changes_is_named_as_the_reason(config, capsys):
    assert run(config, "--set", "recipe.steps=4") == 0
    out = capsys.readouterr().out
    assert "changed by --set: recipe.steps=4" in out
    assert "first different pass: recorded" in out


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


def test_a_plain_study_file_is_no_configuration(results, capsys):
    assert run(results / "study.yaml") == 2
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


def test_the_retraining_is_a_run_of_its_own_in_mlflow(results, tmp_path, capsys):
    from mlflow.tracking import MlflowClient

    home = tmp_path / "results" / "tiny"
    home.mkdir(parents=True)
    shutil.copy(results / "ledger.jsonl", home / "ledger.jsonl")
    assert export.main([str(home), "--arm", "aim"]) == 0
    uri = f"sqlite:///{tmp_path}/results/mlflow.db"
    assert run(home / "best_config.yaml", "--tracking-uri", uri, tracking="on") == 0
    assert "In MLflow: experiment aim_tune/tiny/retrained" in capsys.readouterr().out
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("aim_tune/tiny/retrained")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["aim.phase"] == "retrained"
    assert len(client.get_metric_history(logged.info.run_id, "val/accuracy")) == 3
    assert "test/accuracy" in logged.data.metrics
    assert logged.data.tags["mlflow.note.content"].startswith("# small_cnn on digits")


def test_without_a_network_load_model_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"no network in .* run python -m aim_tune.retrain first"):
        retrain.load_model(tmp_path)
