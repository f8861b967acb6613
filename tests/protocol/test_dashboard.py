"""What optuna-dashboard is given is what the ledger holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest

from aim_tune import export, search
from aim_tune.errors import UserError
from aim_tune.protocol.dashboard import write_dashboard
from aim_tune.report import read_results

TEXT = """
name: tiny
backbone: {name: mlp}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
arms: [baseline, aim]
recipe: {steps: 4, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 3, lag: 1}, blocks: 1, twins: 2, confirm: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dashboard")
    (place / "tiny.yaml").write_text(TEXT)
    flags = ["--engine", "in_process", "--tracking", "off", "--quiet"]
    assert search.main([str(place / "tiny.yaml"), "--out", str(place / "out"), *flags]) == 0
    return place / "out" / "tiny"


def test_every_search_training_is_a_trial_with_its_point_score_and_curve(
    folder: Path, tmp_path: Path
) -> None:
    study, history = read_results(folder)
    path = tmp_path / "studies.db"
    written = write_dashboard(path, study, history)
    assert written == {
        "tiny/explore/baseline": 3, "tiny/explore/aim": 3, "tiny/twins/baseline": 2, "tiny/twins/aim": 2,
    }  # fmt: skip
    for name in written:
        _, kind, arm = name.split("/")
        found = optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials
        rows = history.rows(kind.removesuffix("s"), arm)
        assert [t.value for t in found] == [r.score for r in rows]
        assert [t.params["shared.lr"] for t in found] == [r.point.shared["lr"] for r in rows]
        assert ["addon.memory_shape" in t.params for t in found] == [arm == "aim"] * len(rows)
        assert [t.intermediate_values for t in found] == [
            {m.step: m.val_accuracy for m in r.curve} for r in rows
        ]


def test_a_file_that_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_dashboard(path, *read_results(folder))
    assert path.read_text() == "mine"


def test_the_verb_writes_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "tiny")
    path = tmp_path / "studies.db"
    assert export.main([str(tmp_path / "tiny"), "--optuna", str(path)]) == 0
    assert "4 Optuna studies, 10 trials" in capsys.readouterr().out
    assert path.is_file()
    assert export.main([str(tmp_path / "tiny"), "--optuna", str(path)]) == 2
