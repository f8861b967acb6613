"""A search with a storage: a new head, with an empty disk, goes on where the lost one stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aim_tune import search
from aim_tune.ledger import read_history
from aim_tune.storage import open_storage

TEXT = """
name: tiny
backbone: {name: mlp, hidden: 32, depth: 1}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
arms: [baseline, aim]
recipe: {steps: 4, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [1, 1, 4], update_width: 4}
protocol: {blocks: 2, twins: 2, confirm: 1}
resources: {checkpoint_s: 0}
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "tiny.yaml").write_text(TEXT)
    fixed = [str(tmp_path / "tiny.yaml"), "--engine", "in_process", "--tracking", "off", "--quiet"]
    return lambda out, *flags: search.main([*fixed, "--out", str(tmp_path / out), *flags])


def outcome(folder: Path) -> dict[Any, Any]:
    history = read_history(folder / "ledger.jsonl")
    return {key: (t.score, t.test_accuracy) for key, t in history.trainings.items()}


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_new_head_goes_on_where_the_lost_one_stopped(
    place: str, run: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    shared = tmp_path / "shared" if place == "folder" else request.getfixturevalue("bucket")
    storage = open_storage(shared)
    assert run("lost", "--storage", str(shared)) == 0
    segments = storage.names("tiny/ledger")
    for name in segments[4:]:  # as if the head had died after its second request
        storage.drop(name)
    known = sum(storage.get(name).count(b"\n") - 1 for name in segments[:4])  # type: ignore[union-attr]
    assert run("new", "--storage", str(shared)) == 0
    assert outcome(tmp_path / "new/tiny") == outcome(tmp_path / "lost/tiny")
    old, new = ((tmp_path / head / "tiny/ledger.jsonl").read_bytes() for head in ("lost", "new"))
    assert new.splitlines()[:known] == old.splitlines()[:known]
    started = [json.loads(line) for line in new.splitlines() if b'"training_started"' in line]
    assert len(started) == len({(r["position"], r["arm"]) for r in started}) == 12


def test_the_storage_ends_with_the_results_and_without_checkpoints(
    run: Any, tmp_path: Path
) -> None:
    assert run("out", "--storage", str(tmp_path / "shared")) == 0
    names = open_storage(tmp_path / "shared").names("tiny")
    pages = ["tiny/best_config.yaml", "tiny/report.html", "tiny/study.yaml", "tiny/verdict.json"]
    assert [n for n in names if not n.startswith("tiny/ledger/")] == pages


def test_the_variable_names_the_storage_too(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIM_TUNE_STORAGE", str(tmp_path / "shared"))
    assert run("out") == 0
    assert (tmp_path / "shared/tiny/verdict.json").is_file()


def test_a_storage_that_cannot_be_written_is_said_before_anything_runs(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert run("out", "--storage", str(tmp_path / "file")) == 2
    assert "in the storage" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_fork_finds_a_name_that_is_free_in_the_storage_too(run: Any, tmp_path: Path) -> None:
    shared = ["--storage", str(tmp_path / "shared")]
    assert run("one", *shared) == 0
    other = [*shared, "--set", "protocol.seed=1"]
    assert run("two", *other) == 2
    assert run("two", *other, "--fork") == 0
    assert (tmp_path / "shared/tiny-2/verdict.json").is_file()
