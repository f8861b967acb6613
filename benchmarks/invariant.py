"""The one rule after every fault: nothing is lost, nothing is done twice. For tests and benchmarks that kill.

completed + failed + pruned = planned, each training has one result, each (training, step) figure is
there once, each look at the test labels was taken once, and MLflow says what the ledger says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aim_tune.ledger import FAILED, STATUSES, History, read_history
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import requests_to_run

Key = tuple[str, str]
"""(position, arm)."""


def check_folder(folder: Path, uri: str | None = None) -> History:
    """The history of results/NAME, if the rule holds there; with `uri` in that MLflow too."""
    history = read_history(folder / "ledger.jsonl")
    check_ledger(history, records_of(folder))
    if uri is not None:
        check_mlflow(history, uri)
    return history


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the ledger."""
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def check_ledger(history: History, records: Iterable[dict[str, Any]]) -> None:
    """Raise AssertionError where a finished study lacks something or has it twice."""
    declared = history.declared
    assert declared is not None, "the study was never declared"
    study = Study.from_dict(declared["study"])
    assert len(history.done) == len(history.requests) == requests_to_run(study, history)
    open_ = [key for key, t in history.trainings.items() if t.status not in STATUSES]
    assert not open_, f"neither completed nor failed nor pruned: {open_}"
    ends = Counter(status_of(t.status) for t in history.trainings.values())
    planned = sum(len(request.arms) for request in history.requests.values())
    assert sum(ends.values()) == planned, f"{dict(ends)}, planned {planned}"
    own = {key for key, t in history.trainings.items() if t.reused_from is None}
    done = Counter((r["position"], r["arm"]) for r in records if r["event"] == "training_done")
    assert done == Counter(dict.fromkeys(own, 1)), "a training has no result, or two"
    for key, t in history.trainings.items():
        steps = [m.step for m in t.curve]
        assert steps == sorted(set(steps)), f"{key}: a step is there twice: {steps}"
    looks = Counter(look["position"] for look in history.looks)
    assert set(looks.values()) <= {1}, f"labels were looked at twice: {looks}"


def status_of(status: str) -> str:
    """completed, failed or pruned."""
    return "failed" if status in FAILED else "pruned" if status == "pruned" else "completed"


def check_mlflow(history: History, uri: str) -> None:
    """Raise AssertionError where MLflow at `uri` does not say what the ledger says, each once."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found: dict[str, Any] = {}
    ids = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    for run in client.search_runs(ids, max_results=5000):
        if run.data.tags.get("aim.phase") != "verdict":
            name = run.data.tags["aim_tune.key"].partition("/")[2]
            assert name not in found, f"{name} has two runs"
            found[name] = run
    own = {f"{p}/{a}": t for (p, a), t in history.trainings.items() if t.reused_from is None}
    assert set(found) == set(own), "MLflow holds other trainings"
    for name, t in own.items():
        run = found[name]
        assert run.data.tags["aim.status"] == t.status, name
        assert run.data.metrics.get("test/accuracy") == t.test_accuracy, name
        points = client.get_metric_history(run.info.run_id, "val/accuracy")
        assert [(p.step, p.value) for p in points] == [(m.step, m.val_accuracy) for m in t.curve], (
            name
        )
