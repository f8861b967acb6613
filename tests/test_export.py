"""The verb export: one file that reads back equal, and that never destroys another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_tune import export
from aim_tune.artifacts.config import SECTIONS
from aim_tune.spec.yaml_io import load_plain
from aim_tune.stats.simulate import World, example_study, simulated_events


def write_results(folder: Path, effect: float = 30.0, requests: int | None = None) -> Path:
    study = example_study(blocks=3, twins=2, confirm=1)
    world = World(effects={"aim": effect, "frozen": 0.0}, test_examples=200)
    events = simulated_events(study, world.play, requests=requests)
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text(
        "".join(json.dumps(r, default=float) + "\n" for r in events)
    )
    return folder


@pytest.fixture
def results(tmp_path) -> Path:
    return write_results(tmp_path / "example")


def test_the_file_holds_all_that_a_retraining_needs(results, capsys):
    assert export.main([str(results)]) == 0
    config = load_plain(results / "best_config.yaml")
    assert config["arm"] == "aim"
    assert config["study"] == example_study(blocks=3, twins=2, confirm=1).to_dict()
    assert set(config["streams"]) == {"split", "init", "order", "augment", "dropout", "addon"}
    assert len(config["recorded"]["steps"]) == len(config["recorded"]["val_accuracy"]) == 10
    assert config["provenance"]["verdict"] == "better"
    out = capsys.readouterr().out
    assert "arm aim, expected" in out
    assert f"python -m aim_tune.retrain {results / 'best_config.yaml'}" in out


def test_every_float_reads_back_exactly(results):
    from aim_tune.ledger import read_history

    export.main([str(results)])
    config = load_plain(results / "best_config.yaml")
    history = read_history(results / "ledger.jsonl")
    training = history.trainings[config["recorded"]["position"], "aim"]
    assert config["recorded"]["val_accuracy"] == [m.val_accuracy for m in training.curve]
    assert config["point"] == training.point.to_dict()
    assert config["streams"] == training.streams


def test_the_file_explains_itself(results):
    export.main([str(results)])
    text = (results / "best_config.yaml").read_text()
    assert text.startswith("# Best configuration of example, arm aim.\n# aim is clearly better")
    for comment in SECTIONS.values():
        assert f"\n# {comment}\n" in text


def test_another_arm_can_be_exported(results):
    assert export.main([str(results), "--arm", "baseline"]) == 0
    config = load_plain(results / "best_config.yaml")
    assert (config["arm"], config["point"]["addon"]) == ("baseline", {})


def test_an_unknown_arm_is_bad_input(results, capsys):
    assert export.main([str(results), "--arm", "amy"]) == 2
    assert "unknown arm 'amy'" in capsys.readouterr().err


def test_an_unfinished_study_is_refused_unless_asked_for(tmp_path, capsys):
    folder = write_results(tmp_path / "example", requests=4)
    assert export.main([str(folder)]) == 2
    assert "--allow-unfinished" in capsys.readouterr().err
    assert not (folder / "best_config.yaml").exists()
    assert export.main([str(folder), "--allow-unfinished"]) == 0
    assert load_plain(folder / "best_config.yaml")["provenance"]["status"] == "unfinished"
    assert "The study is unfinished; the file says so." in capsys.readouterr().out


def test_an_older_configuration_of_the_study_is_replaced(results):
    assert export.main([str(results), "--arm", "baseline"]) == 0
    assert export.main([str(results), "--arm", "frozen"]) == 0
    assert load_plain(results / "best_config.yaml")["arm"] == "frozen"


def test_another_file_is_not_destroyed(results, tmp_path, capsys):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("chapter: 1\n")
    assert export.main([str(results), "-o", str(thesis)]) == 2
    assert "is no exported configuration" in capsys.readouterr().err
    assert thesis.read_text() == "chapter: 1\n"
    assert export.main([str(results), "-o", str(thesis), "--force"]) == 0
    assert load_plain(thesis)["arm"] == "aim"


def test_the_configuration_of_another_study_is_not_destroyed(results, tmp_path, capsys):
    assert export.main([str(results)]) == 0
    file = results / "best_config.yaml"
    file.write_text(file.read_text().replace("study_name: example", "study_name: other"))
    assert export.main([str(results)]) == 2
    assert "holds the configuration of study 'other', this is 'example'" in capsys.readouterr().err


def test_a_folder_as_target_is_bad_input(results, tmp_path, capsys):
    assert export.main([str(results), "-o", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err


def test_a_dash_prints_the_file(results, capsys):
    assert export.main([str(results), "-o", "-"]) == 0
    assert "format: aim_tune.best_config/1" in capsys.readouterr().out
    assert not (results / "best_config.yaml").exists()


def test_a_missing_target_folder_leaves_nothing_behind(results, tmp_path, capsys):
    assert export.main([str(results), "-o", str(tmp_path / "no" / "best.yaml")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
