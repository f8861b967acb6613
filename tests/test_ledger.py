"""The ledger: what is appended is what a replay gives; one writer; cut tails go, damage is refused."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aim_tune.errors import LedgerError, LockedError, ResourceError
from aim_tune.ledger import (
    History,
    Ledger,
    Measure,
    TrainingResult,
    pack_bits,
    pack_ints,
    read_history,
    unpack_bits,
    unpack_ints,
)
from aim_tune.spec.request import STREAMS, Point, Request

ARMS = ("baseline", "aim")


def request(position: str, *, test: bool = False) -> Request:
    return Request(
        position=position,
        arms={arm: Point(shared={"lr": 0.01}) for arm in ARMS},
        streams=dict.fromkeys(STREAMS, 7),
        test=test,
    )


def asked(position: str, *, reused_from: str | None = None, test: bool = False) -> dict:
    what = request(position, test=test)
    return {
        "event": "asked",
        "position": position,
        "request": what.to_dict(),
        "content_hash": what.content_hash,
        "reused_from": reused_from,
    }


def started(position: str, arm: str, attempt: int = 1) -> dict:
    return {
        "event": "training_started",
        "position": position,
        "arm": arm,
        "attempt": attempt,
        "node": "n1",
        "device": "cpu",
        "pid": 1,
    }


def epoch(position: str, arm: str, step: int, attempt: int = 1, accuracy: float = 0.5) -> dict:
    return {
        "event": "epoch",
        "position": position,
        "arm": arm,
        "attempt": attempt,
        "step": step,
        "epoch": step / 10,
        "train_loss": 1.0,
        "val_loss": 1.0,
        "val_accuracy": accuracy,
        "lr": 0.01,
        "seconds": step / 100,
    }


def finished(position: str, arm: str, accuracy: float = 0.5, attempt: int = 1, **more) -> dict:
    result = TrainingResult(arm=arm, status="ok", steps=30, val_accuracy=accuracy, **more)
    return {
        "event": "training_done",
        "position": position,
        "arm": arm,
        "attempt": attempt,
        "result": result.to_dict(),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study" / "ledger.jsonl"


def filled(path: Path, count: int = 6) -> list[dict]:
    with Ledger(path) as ledger:
        return [ledger.append(asked(f"explore/{i}")) for i in range(count)]


def test_without_curves_all_but_the_validation_passes_is_read(path):
    with Ledger(path) as ledger:
        for record in (
            {"event": "declared", "study": {"name": "x"}, "study_hash": "ab"},
            asked("block/2/twin/1"), started("block/2/twin/1", "aim"),
            epoch("block/2/twin/1", "aim", 10), epoch("block/2/twin/1", "aim", 20),
        ):  # fmt: skip
            ledger.append(record)
    whole, quick = read_history(path), read_history(path, curves=False)
    twin = "block/2/twin/1", "aim"
    assert (len(whole.trainings[twin].curve), quick.trainings[twin].curve) == (2, [])
    whole.trainings[twin].curve = []
    assert quick == whole  # the time of the last record and the number of records, too


def test_a_replay_gives_the_history_the_writer_had(path):
    with Ledger(path) as ledger:
        records = [
            {"event": "declared", "study": {"name": "x"}, "study_hash": "ab"},
            asked("block/2/twin/1"),
            started("block/2/twin/1", "aim"),
            epoch("block/2/twin/1", "aim", 10),
            epoch("block/2/twin/1", "aim", 20, accuracy=0.6),
            finished("block/2/twin/1", "aim", 0.6),
            asked("block/2/confirm/0", test=True),
            finished("block/2/confirm/0", "aim", 0.7, predictions=pack_ints([1, 2, 0])),
            {"event": "test_look", "position": "block/2/confirm/0", "arms": ["aim"], "examples": 3},
            {
                "event": "request_done",
                "position": "block/2/confirm/0",
                "test": {"aim": {"accuracy": 2 / 3, "correct": pack_bits([1, 0, 1])}},
            },
            {"event": "extended", "blocks": 12},
            {"event": "verdict", "verdict": {"verdict": "better"}},
        ]
        returned = [ledger.append(record) for record in records]
        live = ledger.history
    assert read_history(path) == live
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["event"] for line in lines] == [record["event"] for record in records]
    assert [{k: v for k, v in line.items() if k != "crc"} for line in lines] == returned
    assert all(abs(line["time"] - time.time()) < 60 for line in lines)

    twin = live.trainings["block/2/twin/1", "aim"]
    assert (twin.stage, twin.block, twin.index, twin.status) == ("twin", 2, 1, "ok")
    assert [m.step for m in twin.curve] == [10, 20]
    assert (twin.score, twin.done, twin.attempts) == (0.6, True, 1)
    assert live.trainings["block/2/twin/1", "baseline"].status == "asked"
    confirm = live.trainings["block/2/confirm/0", "aim"]
    assert confirm.test_accuracy == pytest.approx(2 / 3)
    assert unpack_bits(confirm.correct).tolist() == [True, False, True]
    assert unpack_ints(confirm.result.predictions).tolist() == [1, 2, 0]
    assert live.done == {"block/2/confirm/0"}
    assert [look["examples"] for look in live.looks] == [3]
    assert (live.blocks, live.verdict, live.events) == (12, {"verdict": "better"}, 12)
    assert live.declared["study_hash"] == "ab"
    assert [t.arm for t in live.rows(stage="twin")] == list(ARMS)
    assert [t.position for t in live.rows(arm="aim")] == ["block/2/twin/1", "block/2/confirm/0"]
    assert [t.arm for t in live.of("block/2/twin/1")] == list(ARMS)


def test_nan_and_inf_are_null_in_the_file_and_nan_in_a_curve(path):
    with Ledger(path) as ledger:
        ledger.append(asked("explore/0"))
        record = epoch("explore/0", "aim", 10) | {"train_loss": math.nan, "val_loss": math.inf}
        returned = ledger.append(record)
    assert returned["train_loss"] is None  # listeners see what a replay sees
    assert json.loads(path.read_text().splitlines()[1])["val_loss"] is None
    measure = read_history(path).trainings["explore/0", "aim"].curve[0]
    assert math.isnan(measure.train_loss)
    assert math.isnan(measure.val_loss)
    assert measure == replace(measure, val_accuracy=0.5, step=10)


def test_opening_again_goes_on_behind_the_last_record(path):
    before = filled(path, 2)
    with Ledger(path) as ledger:
        assert list(ledger.history.requests) == ["explore/0", "explore/1"]
        assert ledger.history.dropped_bytes == 0
        ledger.append(asked("explore/2"))
    assert list(read_history(path).requests) == ["explore/0", "explore/1", "explore/2"]
    assert len(before) == 2


def test_a_cut_last_line_is_dropped_and_said(path):
    filled(path)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[:-7])
    assert read_history(path).dropped_bytes == len(last) - 7
    assert path.read_bytes() == whole[:-7]  # reading alone changes nothing
    with Ledger(path) as ledger:
        assert ledger.history.dropped_bytes == len(last) - 7
        assert list(ledger.history.requests) == [f"explore/{i}" for i in range(5)]
        ledger.append(asked("explore/5"))
    assert len(read_history(path).requests) == 6


def test_every_cut_of_the_tail_leaves_whole_records(path):
    filled(path, 3)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        assert len(read_history(path).requests) == sum(end <= length for end in ends)


@pytest.mark.parametrize("hurt", ["zeros", "digit", "newline", "not an object"])
def test_damage_in_the_middle_is_refused_with_its_line_and_the_file_is_kept_aside(path, hurt):
    filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = {
        "zeros": lines[3][:40] + bytes(10) + lines[3][50:],
        "digit": lines[3].replace(b'"lr":0.01', b'"lr":0.07'),
        "newline": lines[3].rstrip(b"\n") + b" ",
        "not an object": b"[1, 2]\n",
    }[hurt]
    damaged = b"".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 4 is damaged .*3 lines before it"):
        read_history(path)
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"line 4 .*kept as .*ledger\.jsonl\.damaged-1"):
            Ledger(path)
    assert path.read_bytes() == damaged
    assert path.with_name("ledger.jsonl.damaged-1").read_bytes() == damaged
    assert not path.with_name("ledger.jsonl.damaged-2").exists()
    path.write_bytes(b"".join(lines[:3]))  # the advice of the message works
    with Ledger(path) as ledger:
        assert len(ledger.history.requests) == 3


def test_a_record_about_a_training_that_was_never_asked_is_damage(path):
    filled(path, 1)
    with path.open("a") as file:
        file.write(json.dumps(epoch("explore/9", "aim", 1)) + "\n")
    with pytest.raises(LedgerError, match=r"line 2 is damaged .*explore/9, arm aim"):
        read_history(path)


def test_lines_without_a_checksum_and_events_of_a_later_version_are_read(path):
    path.parent.mkdir()
    lines = [asked("explore/0"), {"event": "of_2031", "what": 1}, {"event": "resumed"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = read_history(path)
    assert list(history.requests) == ["explore/0"]
    assert history.events == 3


def test_an_unknown_event_is_not_written(path):
    with Ledger(path) as ledger, pytest.raises(AssertionError, match="unknown event 'trained'"):
        ledger.append({"event": "trained"})


def test_a_missing_ledger_says_what_to_run(tmp_path):
    with pytest.raises(LedgerError, match=r"no ledger at .*nothing.jsonl; run `python -m aim_tune"):
        read_history(tmp_path / "nothing.jsonl")


def test_a_second_writer_is_refused_with_pid_and_host_of_the_first(path):
    with Ledger(path) as ledger:
        ledger.append(asked("explore/0"))
        found = rf"in use by pid {os.getpid()} on host \S+"
        with pytest.raises(LockedError, match=found):
            Ledger(path)
        assert len(read_history(path).requests) == 1  # reading needs no lock
        ledger.append(asked("explore/1"))  # and the first is undisturbed
    with Ledger(path) as ledger:
        assert len(ledger.history.requests) == 2


def test_a_killed_writer_leaves_no_lock_and_every_record_it_was_told_of(path):
    code = (
        "import sys, time; from aim_tune.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for blocks in range(3): ledger.append({'event': 'extended', 'blocks': blocks})\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(LockedError, match=f"pid {child.pid} on host"):
            Ledger(path)
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    with Ledger(path) as ledger:
        assert ledger.history.blocks == 2


def test_a_full_disk_leaves_no_half_line_and_writing_can_go_on(path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(path) as ledger:
        ledger.append(asked("explore/0"))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, limit[1]))
            with pytest.raises(ResourceError, match="make room and run the same command again"):
                ledger.append(asked("explore/1"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert list(ledger.history.requests) == ["explore/0"]
        ledger.append(asked("explore/2"))
    assert list(read_history(path).requests) == ["explore/0", "explore/2"]


def test_a_folder_that_cannot_be_used_is_said_with_its_name(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResourceError, match=r"cannot write to and lock .*file.ledger.lock"):
        Ledger(tmp_path / "file" / "ledger.jsonl")

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(
        ResourceError, match=r"No locks available\. Choose a folder on a local disk"
    ):
        Ledger(tmp_path / "ledger.jsonl")


def history_of(*records: dict) -> History:
    history = History()
    for record in records:
        history.apply(record)
    return history


def test_passes_of_a_resumed_training_are_merged_and_orphans_ignored():
    place = ("explore/0", "aim")
    history = history_of(
        asked("explore/0"),
        started(*place),
        *(epoch(*place, step, accuracy=0.1) for step in (10, 20, 30)),
        started(*place, attempt=2),
        epoch(*place, 20, attempt=2, accuracy=0.2),
        epoch(*place, 30, attempt=1, accuracy=0.9),  # an orphan still reports
        epoch(*place, 30, attempt=2, accuracy=0.3),
        epoch(*place, 40, attempt=2, accuracy=0.4),
        finished(*place, accuracy=0.4, attempt=2),
        finished(*place, accuracy=0.9, attempt=1),
    )
    training = history.trainings[place]
    assert [m.val_accuracy for m in training.curve] == [0.1, 0.2, 0.3, 0.4]
    assert (training.score, training.attempts, training.status) == (0.4, 2, "ok")


def test_interrupts_are_spared_and_lost_jobs_are_not():
    place = ("explore/0", "aim")
    history = history_of(asked("explore/0"), started(*place), {"event": "interrupted"})
    training = history.trainings[place]
    assert (history.interrupted, training.status, training.spared) == (True, "asked", 1)
    for record in (
        {"event": "resumed"},
        started(*place, attempt=2),
        {"event": "job_lost", "position": "explore/0", "arms": ["aim"], "reason": "killed"},
    ):
        history.apply(record)
    assert (history.interrupted, training.status) == (False, "asked")
    assert (training.attempts, training.spared) == (2, 1)
    history.apply(started(*place, attempt=3))
    assert training.status == "running"
    history.apply({"event": "resumed"})  # after a kill -9 of the driver
    assert (training.status, training.attempts, training.spared) == ("asked", 3, 1)


@pytest.mark.parametrize("source_first", [True, False])
def test_a_reused_request_shows_the_results_of_its_source(source_first):
    done = [finished("explore/0", arm, 0.6) for arm in ARMS]
    repeat = asked("explore/3", reused_from="explore/0")
    history = history_of(
        asked("explore/0"),
        epoch("explore/0", "aim", 10),
        *([*done, repeat] if source_first else [repeat, *done]),
    )
    training = history.trainings["explore/3", "aim"]
    assert (training.reused_from, training.score, training.status) == ("explore/0", 0.6, "ok")
    assert [m.step for m in training.curve] == [10]


def test_results_of_a_later_version_are_read():
    value = TrainingResult(arm="aim", status="ok").to_dict() | {"of_2031": 1}
    assert TrainingResult.from_dict(value) == TrainingResult(arm="aim", status="ok")
    row = epoch("explore/0", "aim", 10)
    assert Measure.from_dict(row).step == 10


def test_replaying_is_linear_and_fast():
    records = [asked("explore/0"), started("explore/0", "aim")]
    records += [epoch("explore/0", "aim", step) for step in range(20_000)]
    start = time.process_time()
    history = history_of(*records)
    assert len(history.trainings["explore/0", "aim"].curve) == 20_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "values", [[], [0], [3, 1, 255], [256], [-1, 4], [70_000], [2**40, -(2**40)]]
)
def test_integers_survive_packing(values):
    assert unpack_ints(pack_ints(values)).tolist() == values


def test_bits_survive_packing_and_are_small():
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 797):
        bits = generator.random(size) < 0.9
        assert np.array_equal(unpack_bits(pack_bits(bits)), bits)
    assert len(pack_bits(np.ones(10_000, dtype=bool))) < 60
    assert len(pack_ints(np.zeros(10_000, dtype=np.int64))) < 80


def test_what_a_power_cut_may_not_take_is_synced_and_little_else(path, monkeypatch):
    """Trainings and looks are; what would be asked or trained again alike is not: it costs 2 ms each."""
    synced = []
    with Ledger(path) as ledger:
        monkeypatch.setattr(os, "fsync", lambda handle: synced.append(handle))
        for record in (
            asked("block/0/confirm/0", test=True), started("block/0/confirm/0", "aim"),
            epoch("block/0/confirm/0", "aim", 10),
        ):  # fmt: skip
            ledger.append(record)
        assert synced == []
        ledger.append(finished("block/0/confirm/0", "aim"))
        assert len(synced) == 1
