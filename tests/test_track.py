"""The verb track: MLflow from the ledger, the same runs once each, however often."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from aim_tune import track
from aim_tune.ledger import Ledger
from aim_tune.stats.simulate import World, example_study, simulated_events


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "example"
    folder.mkdir()
    study = example_study(blocks=2, twins=1, confirm=1, arms=("baseline", "aim"))
    events = simulated_events(study, World(effects={}, test_examples=50).play)
    lines = [json.dumps(r, default=float) + "\n" for r in events]
    (folder / "ledger.jsonl").write_text("".join(lines))
    return folder


def runs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Key -> all a run holds, of the runs that are not in the waste bin; fails where a key stands twice."""
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("aim_tune/example")
    runs = client.search_runs([experiment.experiment_id])
    found = {r.data.tags["aim_tune.key"]: _all_of(client, r) for r in runs}
    assert len(found) == len(runs)
    return found


def _all_of(client: MlflowClient, run: Run) -> dict[str, Any]:
    """What does not depend on when it was written: the verdict run is always the newest."""
    run_id, verdict = run.info.run_id, run.data.tags["aim.phase"] == "verdict"
    history = {
        metric: [
            (m.step, m.value, None if verdict else m.timestamp)
            for m in client.get_metric_history(run_id, metric)
        ]
        for metric in run.data.metrics
    }
    times = None if verdict else (run.info.start_time, run.info.end_time)
    tags = {k: v.replace(run_id, "ID") for k, v in run.data.tags.items()}
    inputs = [(d.dataset.name, d.dataset.digest) for d in run.inputs.dataset_inputs]
    files = sorted(file.path for file in client.list_artifacts(run_id))
    about = (run.info.run_name, run.info.status, times)
    return {
        "about": about, "metrics": history, "params": dict(run.data.params), "tags": tags,
        "data": inputs, "files": files,
    }  # fmt: skip


def test_filled_rebuilt_and_filled_again_it_holds_the_same_runs_once(results, capsys):
    assert track.main([str(results)]) == 0
    out = capsys.readouterr().out
    assert "holds every training of the ledger" in out
    assert "viewStateShareKey=aim_verdict" in out
    first = runs_of(results)
    one = first[next(key for key in first if key.endswith("block/0/twin/0/aim"))]
    assert len(one["metrics"]["val/accuracy"]) == 10
    assert one["params"]
    assert one["data"] == [("digits", "fedcba9876543210")]
    assert len(first) == 9  # 2 x (1 + 1) x 2 trainings, and the verdict
    assert track.main([str(results), "--rebuild"]) == 0
    assert "9 runs are in MLflow's waste bin." in capsys.readouterr().out
    assert runs_of(results) == first
    assert track.main([str(results)]) == 0
    assert runs_of(results) == first


def test_a_search_that_runs_is_left_alone(results, capsys):
    with Ledger(results / "ledger.jsonl"):
        assert track.main([str(results), "--rebuild"]) == 2
    assert "is in use by pid" in capsys.readouterr().err


def test_a_folder_without_a_ledger_says_what_to_run(tmp_path, capsys):
    assert track.main([str(tmp_path)]) == 2
    assert "run `python -m aim_tune.search` first" in capsys.readouterr().err


def test_help_is_light():
    code = (
        "import sys; from aim_tune import track; track.parser().format_help(); "
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'numpy', 'yaml', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
