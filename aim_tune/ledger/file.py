"""The ledger's file: append-only JSONL, one record per event. Only the driver writes it.

A killed process loses nothing; a power cut takes at most what LIGHT names, because every other record is
fsynced with all before it (measured on a shared disk: 1.8 ms each; 16 records per request, 3 or 4 synced).
NaN and inf are written as null (JSON has neither). Each line ends with a CRC-32 of itself, so that a
changed digit is noticed; lines without one are accepted.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from aim_tune.errors import LedgerError, LockedError, ResourceError
from aim_tune.ledger.history import History
from aim_tune.ledger.records import EVENTS

LIGHT = ("asked", "training_started", "epoch")
"""Events that are not synced by themselves: what was lost of them is asked or trained again, alike."""


class Ledger:
    """The ledger of a results folder, open for appending by this process alone.

    Opening replays the file into `history`; where there is none, a new one is begun. An incomplete
    last line is cut off: `append` had not returned, so nothing was built on it;
    `history.dropped_bytes` says how much went. Raises LockedError, with pid and host, while another
    process holds the folder; LedgerError where a line in the middle is damaged (the file then stays
    as it is, a copy is put beside it); ResourceError where the folder cannot be written or locked.

        with Ledger(Path("results/quickstart/ledger.jsonl")) as ledger:
            ledger.append({"event": "resumed", "node": "laptop", "pid": 4711})
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._mutex = threading.Lock()
        self._lock_file = _lock(self.path.with_suffix(".lock"))
        try:
            self.history, self._end = self._replay()
            # Unbuffered: a line is in the file, or append has raised
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(self._end)
            _sync_folder(self.path.parent)
        except BaseException:
            self._lock_file.close()
            raise

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The record as a replay would give it: stamped with `time`, written, applied to `history`.

        Raises ResourceError when it cannot be written (disk full); the file then still ends with
        the record before.
        """
        assert event["event"] in EVENTS, f"unknown event {event['event']!r}; known: {EVENTS}"
        stamped = {"event": event["event"], "time": round(time.time(), 3), **event}
        record, line = _encode(stamped)
        with self._mutex:
            self._write(line, sync=record["event"] not in LIGHT)
            self.history.apply(record)
        return record

    def close(self) -> None:
        """Give the folder free for another process."""
        self._file.close()
        self._lock_file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _replay(self) -> tuple[History, int]:
        if not self.path.exists():
            return History(), 0
        try:
            return _read(self.path)
        except LedgerError as error:
            aside = _copy_aside(self.path)
            raise LedgerError(f"{error} A copy was kept as {aside}.") from None

    def _write(self, line: bytes, *, sync: bool) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):  # the disk took a part only
                raise OSError(f"{written} of {len(line)} bytes written")
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._end)  # no half line under the next one
            raise ResourceError(
                f"cannot write to {self.path}: {error}. Nothing recorded so far is lost: make room "
                "and run the same command again."
            ) from error
        self._end += len(line)


def read_history(path: Path | str, *, curves: bool = True) -> History:
    """The replayed ledger, without a lock and without changing the file: fine while a search writes.

    Without `curves` validation passes are left out, unread: they are most of a ledger. Raises LedgerError
    when there is no ledger, or naming the first damaged line.
    """
    if not Path(path).is_file():
        raise LedgerError(f"no ledger at {path}; run `python -m aim_tune.search` first")
    return _read(Path(path), curves=curves)[0]


def _read(path: Path, *, curves: bool = True) -> tuple[History, int]:
    """History, and where the last complete line ends."""
    history, end = History(), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                history.dropped_bytes = len(line)
                break
            end += len(line)
            if not curves and (passed := _EPOCH.match(line)):
                history.events, history.last_time = history.events + 1, float(passed[1])
                continue
            try:
                history.apply(_decode(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise LedgerError(
                    f"{path}, line {number} is damaged ({_reason(error)}). Put back a whole copy of "
                    f"this file, or keep the {number - 1} lines before it: what came later is then "
                    "run again."
                ) from None
    return history, end


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


_EPOCH = re.compile(rb'{"event":"epoch","time":([\d.]+),')
_CRC = b',"crc":"%08x"}'
_CRC_LENGTH = len(_CRC % 0)


def _encode(record: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The record in plain JSON values, and its line."""
    text = json.dumps(_finite(record), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    body = text.encode()
    return json.loads(text), body[:-1] + _CRC % zlib.crc32(body) + b"\n"


def _decode(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError where it is not what was written."""
    body = line.rstrip(b"\r\n")
    mark = body[-_CRC_LENGTH:]
    if mark.startswith(_CRC[:8]):
        body = body[:-_CRC_LENGTH] + b"}"
        if mark != _CRC % zlib.crc32(body):
            raise ValueError("its checksum does not match")
    record = json.loads(body.decode())
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not a record with an event")
    return record


def _finite(value: Any) -> Any:
    """`value` with NaN and inf as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _lock(path: Path) -> BinaryIO:
    """The lock file, held. The kernel lets go of it when the process dies, however it dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "a process just starting"
        raise LockedError(
            f"{path.parent} is in use by {holder}. Wait for it, stop it, or choose another --out."
        ) from None
    except OSError as error:
        file.close()
        raise _unusable(path, error) from error
    file.truncate(0)
    file.write(f"pid {os.getpid()} on host {socket.gethostname()}".encode())
    file.flush()
    return file


def holder(path: Path | str) -> str:
    """Who writes the ledger at `path` now, such as "pid 4711 on host laptop"; "": nobody.

    Takes no lock: a search that starts meanwhile is not refused. On another machine, or where the system
    does not list its locks, the name that was written last is believed.
    """
    lock = Path(path).with_suffix(".lock")
    try:
        text, found = lock.read_text(errors="replace").strip(), lock.stat()
    except OSError:
        return ""
    if not text.endswith(f" on host {socket.gethostname()}"):
        return text
    try:
        locks = Path("/proc/locks").read_text()
    except OSError:
        return text
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino} "
    return text if place in locks else ""


def _unusable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write to and lock {path}: {error}. Choose a folder on a local disk with --out."
    )


def _copy_aside(path: Path) -> Path:
    """A copy of a damaged file; one that is already there with the same bytes is enough."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            shutil.copy2(path, aside)
            return aside
        if aside.read_bytes() == path.read_bytes():
            return aside
    return path


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
