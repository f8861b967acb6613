"""Claims about the ledger's copy: a new head goes on from it, damage and a second writer are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aim_tune.errors import LedgerError, LockedError, ResourceError
from aim_tune.ledger import Ledger
from aim_tune.ledger_copy import LedgerCopy, gather
from aim_tune.storage import FolderStorage


def record(ledger: Ledger, copy: LedgerCopy, event: str, **values: Any) -> None:
    copy.event(ledger.append({"event": event, **values}))


def epoch(step: int) -> dict[str, Any]:
    return {"position": "explore/0", "arm": "aim", "attempt": 1, "step": step}


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "shared")


def filled(path: Path, storage: FolderStorage, looks: int = 2) -> bytes:
    copy = LedgerCopy(path, storage, "s")
    with Ledger(path) as ledger:
        for number in range(looks):
            record(ledger, copy, "resumed", node="n", pid=number)
    return path.read_bytes()


def test_a_new_head_starts_with_all_that_the_lost_one_had_copied(
    tmp_path: Path, storage: FolderStorage
) -> None:
    before = filled(tmp_path / "old/ledger.jsonl", storage)
    LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")
    assert (tmp_path / "new/ledger.jsonl").read_bytes() == before
    assert storage.names("s") == ["s/ledger/00000000", "s/ledger/00000001"]


def test_what_is_no_cut_waits_for_the_next_cut(tmp_path: Path, storage: FolderStorage) -> None:
    path = tmp_path / "ledger.jsonl"
    copy = LedgerCopy(path, storage, "s")
    with Ledger(path) as ledger:
        record(ledger, copy, "interrupted", reason="x")
        assert storage.names("s") == []
        record(ledger, copy, "resumed", node="n", pid=1)
    assert len(storage.names("s")) == 1
    LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")
    assert (tmp_path / "new/ledger.jsonl").read_bytes() == path.read_bytes()


def test_a_head_that_came_back_keeps_the_longer_ledger_and_copies_the_rest(
    tmp_path: Path, storage: FolderStorage
) -> None:
    path = tmp_path / "ledger.jsonl"
    filled(path, storage)
    with Ledger(path) as ledger:
        ledger.append({"event": "interrupted", "reason": "x"})
    LedgerCopy(path, storage, "s").flush()
    LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")
    assert (tmp_path / "new/ledger.jsonl").read_bytes() == path.read_bytes()


def test_a_cut_last_line_is_not_copied(tmp_path: Path, storage: FolderStorage) -> None:
    path = tmp_path / "ledger.jsonl"
    whole = filled(path, storage)
    path.write_bytes(whole + b'{"event":"inter')
    LedgerCopy(path, storage, "s").flush()
    assert len(storage.names("s")) == 2


def test_two_runs_of_one_study_are_not_mixed(tmp_path: Path, storage: FolderStorage) -> None:
    filled(tmp_path / "one/ledger.jsonl", storage)
    filled(tmp_path / "two/ledger.jsonl", FolderStorage(tmp_path / "elsewhere"), looks=5)
    with pytest.raises(LedgerError, match=r"differ from line 1 on.*--fork"):
        LedgerCopy(tmp_path / "two/ledger.jsonl", storage, "s")


def test_a_second_writer_is_found_at_its_first_request(
    tmp_path: Path, storage: FolderStorage
) -> None:
    one, two = tmp_path / "one/ledger.jsonl", tmp_path / "two/ledger.jsonl"
    filled(one, storage)
    copies = [LedgerCopy(path, storage, "s") for path in (one, two)]
    with Ledger(one) as ledger:
        record(ledger, copies[0], "resumed", node="one", pid=1)
    with Ledger(two) as ledger, pytest.raises(LockedError, match="another search writes to"):
        record(ledger, copies[1], "resumed", node="two", pid=2)


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b.replace(b"resumed", b"resumeD")])
def test_a_damaged_segment_is_refused_by_number(
    tmp_path: Path, storage: FolderStorage, damage: Any
) -> None:
    filled(tmp_path / "old/ledger.jsonl", storage)
    segment = storage.root / "s/ledger/00000000"
    segment.write_bytes(damage(segment.read_bytes()))
    with pytest.raises(LedgerError, match=r"segment 0 of the ledger's copy .* damaged"):
        LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")
    assert not (tmp_path / "new/ledger.jsonl").exists()


def test_a_lost_segment_is_refused_by_number(tmp_path: Path, storage: FolderStorage) -> None:
    filled(tmp_path / "old/ledger.jsonl", storage, looks=3)
    (storage.root / "s/ledger/00000001").unlink()
    with pytest.raises(LedgerError, match="segment 1 of the ledger's copy"):
        LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")


class Unsteady(FolderStorage):
    """Fails, or stores and loses the answer."""

    mood = "well"

    def create(self, name: str, content: bytes) -> bool:
        if self.mood == "deaf":
            raise ResourceError("no route to host")
        done = super().create(name, content)
        if self.mood == "mute":
            raise ResourceError("the answer was lost")
        return done


@pytest.mark.parametrize("mood", ["deaf", "mute"])
def test_a_storage_that_fails_for_a_while_delays_the_copy_and_loses_nothing(
    tmp_path: Path, mood: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, storage = tmp_path / "ledger.jsonl", Unsteady(tmp_path / "shared")
    copy = LedgerCopy(path, storage, "s")
    with Ledger(path) as ledger:
        storage.mood = mood
        for pid in range(3):
            record(ledger, copy, "resumed", node="n", pid=pid)
        assert copy.behind
        assert caplog.text.count("copy is behind") == 1
        storage.mood = "well"
        record(ledger, copy, "resumed", node="n", pid=3)
    assert not copy.behind
    LedgerCopy(tmp_path / "new/ledger.jsonl", storage, "s")
    assert (tmp_path / "new/ledger.jsonl").read_bytes() == path.read_bytes()


def test_gather_brings_ledger_and_pages_but_no_checkpoints(
    tmp_path: Path, storage: FolderStorage
) -> None:
    whole = filled(tmp_path / "head/ledger.jsonl", storage)
    storage.put("s/report.html", b"page")
    storage.put("s/checkpoints/block/0/x.ckpt", b"weights")
    assert gather(storage, "s", tmp_path / "home") == ["ledger.jsonl", "report.html"]
    assert (tmp_path / "home/ledger.jsonl").read_bytes() == whole


def test_gather_names_a_study_that_is_not_there(tmp_path: Path, storage: FolderStorage) -> None:
    filled(tmp_path / "head/ledger.jsonl", storage)
    with pytest.raises(LedgerError, match=r"has no study nothing; it has: s$"):
        gather(storage, "nothing", tmp_path / "home")
