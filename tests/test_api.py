"""aim_tune.run and aim_tune.load: the command as a function, its outcome as a value."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import aim_tune
from aim_tune.errors import StudyError, UserError
from aim_tune.spec import load_plain, load_study
from aim_tune.tables import HOUSE

HERE = {"engine": "in_process", "tracking": "off", "quiet": True}


@pytest.fixture
def asked(tiny_results) -> dict:
    """The tiny study as a mapping."""
    return load_plain(tiny_results.parent.parent / "tiny.yaml")


def test_a_mapping_a_file_and_a_study_are_the_same_question(
    tiny_results, asked, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    file = tiny_results.parent.parent / "tiny.yaml"
    first = aim_tune.run(asked, out=tmp_path / "a", **HERE)
    study, _ = load_study(file, HOUSE)
    known = aim_tune.load(tiny_results)  # by the command line
    for other in (study, str(file)):
        again = aim_tune.run(other, out=tmp_path / "a", **HERE)  # goes on: trains nothing again
        assert again.history.events == first.history.events
    assert first.study.study_hash == known.study.study_hash
    assert first.verdict["effect_points"] == known.verdict["effect_points"]
    assert first.sentence.split(";")[0] == known.sentence.split(";")[0]
    assert not list(tmp_path.glob("*.yaml")), "a temporary file was left behind"


def test_the_table_has_a_row_for_each_training(tiny_results):
    result = aim_tune.load(tiny_results)
    table = result.table()
    assert len(table) == len(result.history.trainings) == 4  # (1 twin + 1 confirm) x 2 arms
    confirm = table[table.stage == "confirm"].set_index("arm")
    for arm in ("baseline", "aim"):
        training = result.history.trainings["block/0/confirm/0", arm]
        assert confirm.loc[arm, "test_accuracy"] == training.test_accuracy
        assert confirm.loc[arm, "shared.lr"] == training.point.shared["lr"]
    assert table[table.stage == "twin"].test_accuracy.isna().all()


def test_what_a_result_shows_is_what_the_files_say(tiny_results):
    result = aim_tune.load(tiny_results)
    assert result.status == "complete"
    assert result.verdict == json.loads(result.paths["verdict"].read_text())
    assert set(result.paths) == {"report", "verdict", "best", "study", "ledger"}
    assert result.sentence in result.report_html.replace("&#x27;", "'")
    shown = result._repr_html_()
    assert "tiny" in shown
    assert "<td>aim</td>" in shown
    with pytest.raises(AttributeError):
        result.sentence = "better"  # type: ignore[misc]


def test_faults_of_a_mapping_are_told_all_at_once(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked["recipe"]["batch_size"], asked["backbone"] = -1, "smal_cnn"
    with pytest.raises(StudyError, match=r"2 faults in the study:\n  study: ") as caught:
        aim_tune.run(asked, out=tmp_path / "a", **HERE)
    assert "did you mean 'small_cnn'?" in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_wrong_arguments_and_folders_raise(tmp_path, asked):
    with pytest.raises(UserError, match="engine='rey': one of 'ray', 'in_process'"):
        aim_tune.run(asked, engine="rey")
    with pytest.raises(UserError, match="cannot be read"):
        aim_tune.run(tmp_path / "nothing.yaml", **HERE)
    with pytest.raises(UserError, match=r"ledger\.jsonl"):
        aim_tune.load(tmp_path)


def test_another_study_in_the_same_folder_is_refused_and_a_fork_is_not(
    asked, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "a"
    aim_tune.run(asked, out=out, **HERE)
    with pytest.raises(UserError, match="holds another study"):
        aim_tune.run(asked, out=out, overrides=["recipe.steps=3"], **HERE)
    forked = aim_tune.run(asked, out=out, overrides=["recipe.steps=3"], fork=True, **HERE)
    assert forked.folder.name == "tiny-2"


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, aim_tune; heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pandas', 'numpy', 'yaml'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
