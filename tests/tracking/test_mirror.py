"""Ledger and MLflow are equal after every fault: each training one run, each step of a metric once."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from aim_tune.errors import ResourceError
from aim_tune.tracking import mirror as mirror_module
from aim_tune.tracking.content import Seen
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri, shown
from aim_tune.tracking.store import Store

VERDICT = {"verdict": "no_evidence", "effect_points": 0.25, "ci95_points": [-1.0, 1.5], "blocks": 2}


def all_runs(folder: Path):
    client = MlflowClient(tracking_uri=default_uri(folder.parent))
    experiment = client.get_experiment_by_name(f"aim_tune/{folder.name}")
    return client, client.search_runs([experiment.experiment_id])


def steps_logged(client, run) -> Counter:
    return Counter(
        (key, entry.step)
        for key in run.data.metrics
        for entry in client.get_metric_history(run.info.run_id, key)
    )


def mirrored(folder, study, records, **kwargs) -> Mirror:
    mirror = Mirror(folder=folder, study=study, make_store=Store, **kwargs)
    mirror.start()
    for record in records:
        mirror.event(record)
    return mirror


def test_each_training_is_one_finished_run_and_each_step_is_there_once(folder, study, records):
    assert mirrored(folder, study, records).close() == ""
    client, runs = all_runs(folder)
    assert Counter(r.data.tags["aim.arm"] for r in runs) == {"baseline": 6, "aim": 6, "frozen": 6}
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs[:3]:
        counts = steps_logged(client, run)
        assert set(counts.values()) == {1}
        assert sum(key == "val/accuracy" for key, _ in counts) == 10


def test_closing_waits_for_as_long_as_runs_are_being_written(folder, study, records, monkeypatch):
    """All of them take far longer than one may."""
    monkeypatch.setattr(mirror_module, "STALL_S", 1.0)
    write = Store.write

    def slow(self, content, seen):
        time.sleep(0.15)
        return write(self, content, seen)

    monkeypatch.setattr(Store, "write", slow)
    assert mirrored(folder, study, records).close() == ""
    assert len(all_runs(folder)[1]) == 18


def test_closing_gives_up_on_a_store_that_writes_no_more(folder, study, records, monkeypatch):
    monkeypatch.setattr(mirror_module, "STALL_S", 0.2)
    answers = threading.Event()
    monkeypatch.setattr(Store, "write", lambda self, content, seen: answers.wait(30))
    mirror = mirrored(folder, study, records)
    assert "runs are not yet in MLflow" in mirror.close()
    answers.set()


def test_the_data_set_is_an_input_with_its_digest(folder, study, records):
    mirrored(folder, study, records[:20]).close()
    _, runs = all_runs(folder)
    (data,) = runs[0].inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("digits", "fedcba9876543210")


def test_replaying_a_finished_ledger_adds_nothing(folder, study, records, write_ledger):
    write_ledger(records)
    mirrored(folder, study, []).close()
    client, before = all_runs(folder)
    assert mirrored(folder, study, records).close() == ""
    _, after = all_runs(folder)
    assert {r.info.run_id for r in after} == {r.info.run_id for r in before}
    assert set(steps_logged(client, after[0]).values()) == {1}


@pytest.mark.parametrize("cut", [7, 30, 61])
def test_a_search_killed_anywhere_and_resumed_gives_the_runs_of_an_uninterrupted_one(
    folder, study, records, write_ledger, cut
):
    mirrored(folder, study, records[:cut]).close()
    write_ledger(records[:cut])
    assert mirrored(folder, study, records[cut:]).close() == ""
    client, runs = all_runs(folder)
    assert len(runs) == 18
    assert {r.info.status for r in runs} == {"FINISHED"}
    for run in runs:
        counts = steps_logged(client, run)
        assert set(counts.values()) == {1}
        assert sum(key == "val/accuracy" for key, _ in counts) == 10


def test_a_run_that_was_written_half_gets_only_what_it_lacks(
    folder, study, records, write_ledger, monkeypatch
):
    """The driver is killed between two calls of one run: no digest, steps there, status RUNNING."""
    write_ledger(records)
    monkeypatch.setattr(Store, "write", half_written)
    mirror = mirrored(folder, study, [])
    mirror.close()
    monkeypatch.undo()
    _, half = all_runs(folder)
    assert {r.info.status for r in half} == {"RUNNING"}
    assert mirrored(folder, study, []).close() == ""
    client, runs = all_runs(folder)
    assert len(runs) == 18
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert set(steps_logged(client, runs[0]).values()) == {1}
    assert runs[0].data.metrics["cost/seconds"] == 2.0


def half_written(store: Store, content, seen: Seen | None) -> Seen:
    seen = store._create(content)
    first = [r for r in content.readings if r.key == "val/accuracy"]
    for reading in first:
        store.client.log_metric(seen.run_id, *reading[:2], reading.time_ms + 5, reading.step)
    return seen


def test_two_runs_with_one_key_become_one(folder, study, records, opened, write_ledger):
    write_ledger(records[:20])
    mirrored(folder, study, []).close()
    _, runs = all_runs(folder)
    client = opened.client
    tags = {k: runs[0].data.tags[k] for k in ("aim_tune.key", "aim_tune.study")}
    client.create_run(runs[0].info.experiment_id, tags=tags)
    mirrored(folder, study, []).close()
    _, after = all_runs(folder)
    assert {r.info.run_id for r in after} == {r.info.run_id for r in runs}


def test_a_search_does_not_wait_until_the_runs_of_an_earlier_start_are_listed(
    folder, study, records, write_ledger, monkeypatch
):
    write_ledger(records[:20])
    mirrored(folder, study, []).close()
    started, in_time, runs = threading.Event(), [], Store.runs

    def slow(self, study_hash):
        in_time.append(started.wait(10))
        return runs(self, study_hash)

    monkeypatch.setattr(Store, "runs", slow)
    mirror = mirrored(folder, study, records[20:])
    started.set()
    assert mirror.close() == ""
    assert in_time == [True]
    assert len(all_runs(folder)[1]) == 18


def test_a_long_training_can_be_watched_and_ends_once(folder, study, records):
    until = next(i for i, r in enumerate(records) if r["event"] == "epoch") + 3
    mirror = mirrored(folder, study, records[:until], live_s=0.0)
    wait_for(lambda: len(all_runs(folder)[1]) == 1)
    client, (run,) = all_runs(folder)
    assert run.info.status == "RUNNING"
    for record in records[until:]:
        mirror.event(record)
    assert mirror.close() == ""
    run = client.get_run(run.info.run_id)
    assert run.info.status == "FINISHED"
    assert set(steps_logged(client, run).values()) == {1}


def test_an_interrupted_training_is_killed_and_its_run_goes_on_after_a_resume(
    folder, study, records, write_ledger
):
    until = next(i for i, r in enumerate(records) if r["event"] == "epoch") + 3
    stop = {"event": "interrupted", "time": records[until]["time"], "reason": "Ctrl-C"}
    mirrored(folder, study, [*records[:until], stop]).close()
    client, (run,) = all_runs(folder)
    assert run.info.status == "KILLED"
    assert run.data.tags["aim.status"] == "interrupted"
    write_ledger([*records[:until], stop])
    resumed = {"event": "resumed", "time": records[until]["time"], "node": "n", "pid": 1}
    again = {**records[2], "attempt": 2}
    rest = [{**r, "attempt": 2} if "attempt" in r else r for r in records[until:]]
    assert mirrored(folder, study, [resumed, again, *rest]).close() == ""
    run = client.get_run(run.info.run_id)
    assert (run.info.status, run.data.tags["aim.status"]) == ("FINISHED", "ok")
    assert len(all_runs(folder)[1]) == 18


def test_the_verdict_run_is_listed_first_with_note_and_artifacts(folder, study, records):
    files = [folder / "verdict.json", folder / "report.html", folder / "missing.yaml"]
    files[0].write_text("{}")
    files[1].write_text("<html>")
    mirror = mirrored(folder, study, records)
    mirror.finish(VERDICT, "Nothing was seen.", files)
    assert mirror.close() == ""
    client, runs = all_runs(folder)
    first = runs[0]
    assert first.info.run_name == "verdict: no evidence"
    assert first.data.tags["mlflow.note.content"].startswith("Nothing was seen.")
    assert first.data.metrics["delta/ci95_low_points"] == -1.0
    assert {a.path for a in client.list_artifacts(first.info.run_id)} == {
        "verdict.json",
        "report.html",
    }
    assert Path(folder.parent / "mlartifacts").is_dir()


def test_the_same_verdict_again_is_the_same_run_and_another_one_replaces_it(folder, study, records):
    first = mirrored(folder, study, records)
    first.finish(VERDICT, "Nothing was seen.")
    first.close()
    again = mirrored(folder, study, records)
    again.finish(VERDICT, "Nothing was seen.")
    again.close()
    _, runs = all_runs(folder)
    assert len(runs) == 19
    changed = mirrored(folder, study, records)
    changed.finish({**VERDICT, "verdict": "better"}, "Better.")
    changed.close()
    _, later = all_runs(folder)
    assert len(later) == 19
    assert later[0].info.run_name == "verdict: better"
    assert later[0].info.run_id != runs[0].info.run_id


def test_a_deleted_experiment_is_used_again(folder, study, records, opened):
    mirrored(folder, study, records[:20]).close()
    client, runs = all_runs(folder)
    client.delete_experiment(runs[0].info.experiment_id)
    assert mirrored(folder, study, records).close() == ""
    assert len(all_runs(folder)[1]) == 18


def test_a_store_that_fails_for_a_while_costs_nothing(folder, study, records, monkeypatch):
    said: list[str] = []
    real, broken = Store.write, [True]

    def write(store, content, seen):
        if broken[0]:
            raise OSError("connection refused")
        return real(store, content, seen)

    monkeypatch.setattr(Store, "write", write)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 0.1)
    mirror = mirrored(folder, study, records, notify=said.append)
    wait_for(lambda: said)
    assert "does not take runs (connection refused)" in said[0]
    broken[0] = False
    wait_for(lambda: len(said) == 2)
    assert "is back" in said[1]
    assert mirror.close() == ""
    assert len(all_runs(folder)[1]) == 18


def test_each_failure_waits_longer_up_to_a_limit_and_not_in_step_with_others(
    folder, study, monkeypatch
):
    mirror = Mirror(folder=folder, study=study)
    waits, jitter = [], []
    with monkeypatch.context() as clock:
        clock.setattr(mirror_module.time, "monotonic", lambda: 100.0)
        clock.setattr(mirror_module.random, "uniform", lambda *ends: jitter.append(ends) or ends[1])
        for _ in range(9):
            mirror._pause()
            waits.append(mirror._retry_at - 100.0)
    assert waits == [min(2.0**n, mirror_module.LONGEST_PAUSE_S) for n in range(1, 10)]
    assert waits[-2] == waits[-1] < 2**8
    assert set(jitter) == {(0.5, 1.0)}


def test_a_call_whose_answer_is_lost_does_not_make_a_second_run(
    folder, study, records, monkeypatch
):
    real, lost = Store.write, set()

    def write(store, content, seen):
        written = real(store, content, seen)
        if content.key not in lost:
            lost.add(content.key)
            raise OSError("timed out")
        return written

    monkeypatch.setattr(Store, "write", write)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 0.0)
    until = next(i for i, r in enumerate(records) if r["event"] == "request_done") + 1
    mirror = mirrored(folder, study, records[:until], notify=lambda text: None)
    wait_for(lambda: len(lost) == 3 and not mirror._writer.backlog)
    assert mirror.close() == ""
    assert len(all_runs(folder)[1]) == 3


def test_what_is_missing_at_the_end_is_said_and_written_by_the_next_run(
    folder, study, records, write_ledger, monkeypatch
):
    def refuse(*_):
        raise OSError("connection refused")

    write_ledger(records)
    monkeypatch.setattr(Store, "write", refuse)
    missing = mirrored(folder, study, [], notify=lambda text: None).close()
    assert "18 runs are not yet in MLflow" in missing
    assert missing.endswith(f"python -m aim_tune.track {folder}")
    monkeypatch.undo()
    assert mirrored(folder, study, []).close() == ""
    assert len(all_runs(folder)[1]) == 18


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_not_there_is_named_at_once(folder, study, closed_port):
    uri = f"http://127.0.0.1:{closed_port}"
    began = time.monotonic()
    with pytest.raises(ResourceError, match=f"no MLflow at {uri}.*optional"):
        Mirror(folder=folder, study=study, uri=uri).start()
    assert time.monotonic() - began < 5


def test_a_server_that_accepts_and_never_answers_is_named_within_ten_seconds(
    folder, study, monkeypatch
):
    monkeypatch.setattr("aim_tune.tracking.place.PROBE_S", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        uri = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ResourceError, match="no MLflow at"):
            Mirror(folder=folder, study=study, uri=uri).start()
    assert mirror_module.REACH_S < 10


def test_without_a_server_an_optional_mirror_lets_the_search_go_on(
    folder, study, records, closed_port
):
    said: list[str] = []
    uri = f"http://127.0.0.1:{closed_port}"
    mirror = mirrored(folder, study, records, uri=uri, required=False, notify=said.append)
    assert "Going on with the ledger alone" in said[0]
    missing = mirror.close()
    assert "18 runs are not yet in MLflow" in missing
    assert missing.endswith(f"aim_tune.track {folder} --tracking-uri {uri}")


def test_a_folder_that_cannot_be_used_is_an_error_that_names_the_store(folder, study, tmp_path):
    (tmp_path / "file").write_text("")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    with pytest.raises(ResourceError, match=r"no MLflow at sqlite:.*file/mlflow\.db"):
        Mirror(folder=folder, study=study, uri=uri).start()


def test_a_password_in_the_uri_is_not_shown():
    assert shown("https://me:secret@host/x") == "https://me:***@host/x"


def test_the_default_store_is_absolute(folder, study, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    mirror = Mirror(folder=Path("results") / study.name, study=study)
    assert mirror.uri == f"sqlite:///{folder.parent}/mlflow.db"


def test_repeated_requests_are_no_runs_of_their_own(folder, study, records):
    first = next(r for r in records if r["event"] == "asked")
    repeat = {
        **first,
        "position": "block/0/twin/99",
        "request": {**first["request"], "position": "block/0/twin/99"},
        "reused_from": first["position"],
    }
    assert mirrored(folder, study, [*records, repeat]).close() == ""
    assert len(all_runs(folder)[1]) == 18


def wait_for(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
