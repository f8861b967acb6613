"""How often the same test data was used: one file per user, counted by the data's digest.

Every study that reads the same sealed test examples, in whatever results folder, fork or copy, is one more
chance of a lucky verdict; so the verdict says "nth study on this test data". A study is the same one if
study, code and data are: running it again, resuming or rebuilding its report is not counted twice. Only
appends, under a lock; a line that cannot be read is left alone. Knows nothing of how a study runs.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from aim_tune.errors import ResourceError

VARIABLE = "AIM_TUNE_REGISTRY"
"""Environment variable that names another file, such as one shared by a group."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one study has used of its test data so far."""

    data_digest: str
    """Which data; the place it lies does not matter."""
    study_hash: str
    """As declared: adding blocks does not make it another study."""
    code_hash: str
    name: str
    """Of the study, for people."""
    folder: str
    """Results folder, for people."""
    looks: int = 0
    """Requests whose predictions were scored on the test examples."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two entries the same study."""
        return self.data_digest, self.study_hash, self.code_hash


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A study's place among all that used its test data."""

    number: int
    """It is the nth; 1 for the first."""
    studies: int
    """How many there are, this one included."""
    looks: int
    """Test looks of all of them."""
    earlier: tuple[Entry, ...]
    """The studies before it, oldest first."""


def registry_path() -> Path:
    """The file in use: $AIM_TUNE_REGISTRY, else test_data.jsonl in the user's state folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "aim_tune" / "test_data.jsonl"


def look_up(path: Path, entry: Entry) -> Standing:
    """The standing that `record` would give, without writing: for plans and reports."""
    try:
        with open(path, "rb") as file:
            return _standing(list(_entries(file)), entry)
    except FileNotFoundError:
        return _standing([], entry)
    except OSError as error:
        raise _unusable(path, error) from error


def record(path: Path, entry: Entry) -> Standing:
    """Count the study (once) and its looks; call it before the first look and after the last.

    Raises ResourceError where the file cannot be written or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # two searches that start together get two numbers
            file.seek(0)
            known = list(_entries(file))
            if not any(e.key == entry.key and e.looks >= entry.looks for e in known):
                _append(file, entry)
            return _standing(known, entry)
    except OSError as error:
        raise _unusable(path, error) from error


def _append(file: BinaryIO, entry: Entry) -> None:
    """One more line, on disk; after a line that a crash has cut, on a line of its own."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    line = json.dumps({"time": round(time.time(), 3), **asdict(entry)}, ensure_ascii=False)
    file.write(line.encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _entries(file: BinaryIO) -> Iterator[Entry]:
    """The lines that can be read."""
    names = {f.name for f in fields(Entry)}
    for line in file:
        try:
            value = json.loads(line)
            yield Entry(**{k: v for k, v in value.items() if k in names})
        except (ValueError, TypeError, AttributeError):
            continue


def _standing(known: list[Entry], entry: Entry) -> Standing:
    """Places by first entry; looks by the latest."""
    latest: dict[tuple[str, str, str], Entry] = {}
    for one in [*known, entry]:
        if one.data_digest == entry.data_digest:
            before = latest.get(one.key)
            if before is None or one.looks > before.looks:
                latest[one.key] = one  # a dict keeps the place of a key that is already there
    place = list(latest).index(entry.key)
    return Standing(
        number=place + 1,
        studies=len(latest),
        looks=sum(one.looks for one in latest.values()),
        earlier=tuple(latest.values())[:place],
    )


def _unusable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot count this study in {path}: {error}. Name another file with {VARIABLE}=FILE."
    )
