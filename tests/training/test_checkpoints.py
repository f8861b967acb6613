from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_tune.errors import ResourceError
from aim_tune.training.checkpoints import CheckpointSlot, CheckpointStore

KEY = "block/0/twin/1/aim/1"


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


def test_the_newest_is_given_and_two_are_kept(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (5, 10, 15):
        store.put(KEY, step, b"state %d" % step)
    assert store.latest(KEY) == (15, b"state 15")
    assert [p.name for p in files(tmp_path)] == ["step-0000000010.ckpt", "step-0000000015.ckpt"]


def test_an_unknown_key_gives_none(store: CheckpointStore) -> None:
    assert store.latest(KEY) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: b"",
        lambda content: b"\0" * len(content),
    ],
    ids=["cut", "flipped", "empty", "zeroed"],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(
    store: CheckpointStore,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.put(KEY, 5, b"good")
    store.put(KEY, 10, b"newer")
    newest = files(tmp_path)[-1]
    newest.write_bytes(damage(newest.read_bytes()))
    assert store.latest(KEY) == (5, b"good")
    assert "step-0000000010.ckpt is damaged; the one before it is used" in store.faults[0]
    assert "is damaged" in caplog.text


def test_two_damaged_checkpoints_give_none(store: CheckpointStore, tmp_path: Path) -> None:
    store.put(KEY, 5, b"good")
    store.put(KEY, 10, b"newer")
    for path in files(tmp_path):
        path.write_bytes(b"")
    assert store.latest(KEY) is None
    assert len(store.faults) == 2


def test_a_kill_while_writing_leaves_the_old_one_whole(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    store.put(KEY, 5, b"good")
    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        store.put(KEY, 10, b"newer")
    assert store.latest(KEY) == (5, b"good")
    assert store.faults == []


def test_a_full_disk_gives_a_plain_reason_and_no_file(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"cannot write block/0/.*No space left on device"):
        store.put(KEY, 5, b"content")
    assert files(tmp_path) == []


def test_a_bucket_keeps_checkpoints_as_a_folder_does(bucket: str) -> None:
    slot = CheckpointSlot(CheckpointStore(f"{bucket}/run"), "block/0/twin/1", "aim", 1)
    for step in (5, 10, 15):
        slot.save(step, {"step": step})
    later = CheckpointSlot(CheckpointStore(f"{bucket}/run"), "block/0/twin/1", "aim", 2)
    assert later.load() == {"step": 15}
    later.drop()
    assert slot.load() is None


def test_drop_forgets_all_attempts_of_one_arm_only(slot: Callable[[int], CheckpointSlot]) -> None:
    for attempt in (1, 2):
        slot(attempt).save(5, {"attempt": attempt})
    store = slot(1).store
    store.put("block/0/twin/1/frozen/1", 5, b"other")
    slot(2).drop()
    assert slot(2).load() is None
    assert store.latest("block/0/twin/1/frozen/1") == (5, b"other")


@pytest.mark.parametrize("key", ["../x", "/etc/x", "a/../b", "a//b", "", "a/.hidden", "a\nb"])
def test_keys_that_could_leave_the_folder_are_refused(store: CheckpointStore, key: str) -> None:
    with pytest.raises(AssertionError, match="unsafe checkpoint key"):
        store.put(key, 1, b"")


def test_plain_types_and_tensors_come_back(slot: Callable[[int], CheckpointSlot]) -> None:
    state: dict[str, Any] = {
        "tensor": torch.arange(6.0).view(2, 3), "list": [1, 2.5, "x", None, True], "map": {"a": (1, 2)}
    }  # fmt: skip
    slot(1).save(3, state)
    loaded = slot(1).load()
    assert loaded is not None
    assert torch.equal(loaded.pop("tensor"), state.pop("tensor"))
    assert loaded == state


def test_an_attempt_reads_earlier_ones_and_never_later_ones(
    slot: Callable[[int], CheckpointSlot],
) -> None:
    slot(1).save(50, {"by": 1})
    assert slot(2).load() == {"by": 1}
    slot(2).save(60, {"by": 2})
    slot(1).save(70, {"by": "an orphan of attempt 1"})
    assert slot(3).load() == {"by": 2}
    assert slot(1).load() == {"by": "an orphan of attempt 1"}


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_hostile_checkpoint_executes_nothing_and_is_passed_over(
    slot: Callable[[int], CheckpointSlot], capsys: pytest.CaptureFixture[str]
) -> None:
    slot(1).save(5, {"good": 1})
    slot(1).store.put("block/0/twin/1/aim/1", 9, pickle.dumps(Hostile(), protocol=2))
    assert slot(1).load() == {"good": 1}
    assert "executed" not in capsys.readouterr().out
    assert "step 9 refused" in slot(1).faults[0]
