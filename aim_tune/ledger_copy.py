"""The ledger's second home: a copy in the storage, so that a new head can go on where a lost one stopped.

Object stores cannot append, so the copy is numbered segments, each with a digest, written after every
request. A segment is created, never overwritten: two searches that write to one copy find out at the
first request. The ledger on the driver's own disk stays the one that is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aim_tune.errors import LedgerError, LockedError, ResourceError
from aim_tune.storage import Storage

LOG = logging.getLogger(__name__)
FORMAT = b"aim_tune ledger segment 1"
CUTS = frozenset(("declared", "resumed", "extended", "request_done", "test_look", "verdict"))
"""Events after which what is new goes to the storage."""


class LedgerCopy:
    """Copies what is new in a ledger to STORAGE/NAME/ledger; a listener of the conductor.

    Open it before the ledger: it first makes the two equal (the longer one wins where one begins like
    the other). Raises LedgerError where they tell different stories or a segment is damaged, and
    LockedError where another search has written since. A storage that cannot be reached in mid-search
    is said once and tried again at the next cut: the search goes on.
    """

    def __init__(self, path: Path, storage: Storage, name: str) -> None:
        self._path, self._storage, self._study = path, storage, name
        self.behind = False
        """Whether the last attempt to copy failed."""
        copy, self._number = read_copy(storage, name)
        self._copied = len(copy)
        here = _whole_lines(path.read_bytes()) if path.exists() else b""
        if copy.startswith(here) and len(copy) > len(here):
            _replace(path, copy)
        elif not here.startswith(copy):
            raise LedgerError(
                f"{path} and its copy {storage.uri}/{name}/ledger differ from line "
                f"{_first_difference(here, copy)} on: they belong to two runs of the study. Move one of "
                "them away, or give --fork."
            )

    def event(self, record: Mapping[str, Any]) -> None:
        """Take a record that is in the ledger."""
        if record["event"] in CUTS:
            self.flush()

    def flush(self) -> None:
        """Copy whole lines that are not there yet. Raises LockedError, see the class."""
        while new := self._new():
            name = _segment(self._study, self._number)
            try:
                stored = new if self._storage.create(name, _sealed(new)) else self._stored(name)
            except ResourceError as error:
                if not self.behind:
                    LOG.warning("The ledger's copy is behind, the search goes on: %s", error)
                self.behind = True
                return
            if not new.startswith(stored):  # shorter, if an answer of the storage was lost earlier
                raise LockedError(
                    f"another search writes to {self._storage.uri}/{self._study}/ledger; end one of the two, "
                    "then give the same command again"
                )
            self._number, self._copied = self._number + 1, self._copied + len(stored)
            self.behind = False

    def _new(self) -> bytes:
        with self._path.open("rb") as ledger:
            ledger.seek(self._copied)
            return _whole_lines(ledger.read())

    def _stored(self, name: str) -> bytes:
        return _opened(self._storage.get(name) or b"") or b"damaged"


def read_copy(storage: Storage, name: str) -> tuple[bytes, int]:
    """The copied ledger of study `name`, b"" where there is none, and the number of its segments.

    Raises LedgerError naming the first segment that is missing or damaged.
    """
    folder = f"{name}/ledger"
    names = storage.names(folder)
    parts = [_opened(content) for content in storage.get_all(names)]
    for number, (found, lines) in enumerate(zip(names, parts, strict=True)):
        if found != _segment(name, number) or lines is None:
            raise LedgerError(
                f"segment {number} of the ledger's copy {storage.uri}/{folder} is missing or damaged. Put "
                "it back, or move the copy away: what came after it is then run again."
            )
    return b"".join(lines for lines in parts if lines), len(parts)


def studies(storage: Storage) -> list[str]:
    """Names of the studies that have a ledger in the storage."""
    end = _segment("", 0)
    return [name.removesuffix(end) for name in storage.names("") if name.endswith(end)]


def gather(storage: Storage, name: str, folder: Path) -> list[str]:
    """Bring a study's ledger and pages from the storage into `folder`: the names written, sorted.

    Raises LedgerError where the storage has no study of this name, or its copy is damaged.
    """
    ledger, segments = read_copy(storage, name)
    if not segments:
        known = ", ".join(studies(storage)) or "none"
        raise LedgerError(f"the storage {storage.uri} has no study {name}; it has: {known}")
    pages = [n for n in storage.names(name) if n.count("/") == name.count("/") + 1]
    contents = dict(zip(pages, storage.get_all(pages), strict=True))
    files = {"ledger.jsonl": ledger, **{Path(n).name: c for n, c in contents.items()}}
    for file, content in files.items():
        _replace(folder / file, content)
    return sorted(files)


def _segment(study: str, number: int) -> str:
    return f"{study}/ledger/{number:08d}"


def _sealed(lines: bytes) -> bytes:
    return FORMAT + b" " + hashlib.sha256(lines).hexdigest().encode() + b"\n" + lines


def _opened(content: bytes) -> bytes | None:
    """The lines of a segment; None where it is damaged."""
    lines = content.partition(b"\n")[2]
    return lines if content == _sealed(lines) else None


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = zip(one.split(b"\n"), other.split(b"\n"), strict=False)
    return next(i for i, (a, b) in enumerate(pairs, 1) if a != b)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
