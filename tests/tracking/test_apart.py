"""MLflow in a process of its own: the same runs as with MLflow in this one, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from aim_tune.errors import ResourceError
from aim_tune.tracking.apart import NICE, Apart
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri
from aim_tune.tracking.store import Store


def all_runs(folder):
    client = MlflowClient(tracking_uri=default_uri(folder.parent))
    experiment = client.get_experiment_by_name(f"aim_tune/{folder.name}")
    return client.search_runs([experiment.experiment_id])


def content(runs) -> list:
    return sorted(
        (r.info.run_name, r.info.status, r.data.metrics, r.data.params, r.inputs.to_dictionary())
        for r in runs
    )


def process_of(store: Apart) -> subprocess.Popen:
    assert store._child is not None
    return store._child


def test_the_runs_are_the_same_as_with_mlflow_in_this_process(folder, records, mirrored):
    mirrored(records, make_store=Apart)
    apart = content(all_runs(folder))
    assert len(apart) == 18
    (folder.parent / "mlflow.db").unlink()
    mirrored(records)
    assert content(all_runs(folder)) == apart


def test_a_process_that_is_killed_is_replaced_and_no_run_is_lost_or_doubled(
    folder, study, records, monkeypatch
):
    monkeypatch.setattr("aim_tune.tracking.mirror.LONGEST_PAUSE_S", 0.1)
    said: list[str] = []
    mirror = Mirror(folder=folder, study=study, notify=said.append)
    mirror.start()
    for record in records[:40]:
        mirror.event(record)
    end = time.monotonic() + 20
    while mirror._writer.backlog and time.monotonic() < end:
        time.sleep(0.05)
    first = process_of(mirror._store)
    first.send_signal(signal.SIGKILL)
    for record in records[40:]:
        mirror.event(record)
    end = time.monotonic() + 30
    while not any("is back" in text for text in said) and time.monotonic() < end:
        time.sleep(0.05)
    assert mirror.close() == ""
    assert "the process that writes to MLflow has died" in said[0]
    assert (
        len({r.data.tags["aim_tune.key"] for r in all_runs(folder)}) == len(all_runs(folder)) == 18
    )


def test_it_gives_way_to_trainings_and_ends_with_its_store(folder):
    store = Apart(default_uri(folder.parent))
    store.open("aim_tune/x", "")
    child = process_of(store)
    assert os.getpriority(os.PRIO_PROCESS, child.pid) == NICE
    session = Path(f"/proc/{child.pid}/autogroup")  # where Linux weighs sessions against each other
    if session.exists():
        assert session.read_text().split()[-1] == str(NICE)
    store.close()
    assert child.returncode == 0
    with pytest.raises(RuntimeError, match="the store is closed"):
        store.version()


def test_a_store_that_cannot_be_opened_is_the_same_error(tmp_path):
    (tmp_path / "file").write_text("")
    store = Apart(f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ResourceError, match=r"no MLflow at sqlite:.*file/mlflow\.db"):
        store.open("aim_tune/x", "")
    store.close()


def test_what_mlflow_refuses_arrives_with_its_text(folder):
    store = Apart(default_uri(folder.parent))
    store.open("aim_tune/x", "")
    with pytest.raises(RuntimeError, match="MlflowException"):
        store.tag_experiment({"x" * 5000: "y"})
    assert store.version()
    store.close()


def test_it_ends_when_the_search_is_killed(folder):
    script = (
        "import sys, time\n"
        "from aim_tune.tracking.apart import Apart\n"
        "store = Apart(sys.argv[1])\n"
        "store.open('aim_tune/x', '')\n"
        "print(store._child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    search = subprocess.Popen(
        [sys.executable, "-c", script, default_uri(folder.parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert search.stdout is not None
    pid = int(search.stdout.readline())
    search.kill()
    search.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_the_driver_does_not_import_mlflow():
    script = "import sys, aim_tune.tracking.mirror; sys.exit('mlflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_open_page_does_not_lock_a_search_out(folder, records, mirrored):
    """A reader in mid-transaction, as an MLflow page that is being drawn: with sqlite's usual journal the
    writer waits for it, and fails after 20 s."""
    mirrored(records[:20])
    with sqlite3.connect(folder.parent / "mlflow.db") as reader:
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        reader.execute("BEGIN")
        (before,) = reader.execute("SELECT count(*) FROM runs").fetchone()
        mirrored(records)
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (before,)
        reader.rollback()
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (18,)


def test_a_store_named_by_the_user_keeps_its_journal(folder):
    store = Store(default_uri(folder.parent))
    store.open("aim_tune/x", "")
    store.close()
    with sqlite3.connect(folder.parent / "mlflow.db") as base:
        assert base.execute("PRAGMA journal_mode").fetchone() == ("delete",)
