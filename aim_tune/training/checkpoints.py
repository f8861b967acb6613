"""Checkpoints that survive kills: whole or absent, digest-checked, plain types, fenced by attempt.

A file is one line (format and SHA-256) and the payload; it is written under a temporary name, synced
and renamed. The two newest of an attempt are kept: if the newest is damaged, the one before is used
and that is said. Reading executes nothing (weights_only). Never Ray checkpoints.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aim_tune.errors import ResourceError

LOG = logging.getLogger(__name__)
FORMAT = b"aim_tune checkpoint 1"
KEPT = 2
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class FolderStore:
    """Bytes under (key, step) in a folder. Keys are relative paths such as block/0/twin/1/aim/1."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.faults: list[str] = []
        """One line per damaged file that was passed over."""

    def put(self, key: str, step: int, content: bytes) -> None:
        """Store durably, then forget all but the newest two; raises ResourceError if it cannot."""
        folder = self._folder(key)
        final = folder / f"step-{step:010d}.ckpt"
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_durably(temporary, final, FORMAT + b" " + _digest(content) + b"\n" + content)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise ResourceError(
                f"cannot write the checkpoint {final}: {error.strerror or error}; "
                "make room there, then give the same command again"
            ) from error
        for old in self._files(key)[KEPT:]:
            old.unlink(missing_ok=True)

    def latest(self, key: str) -> tuple[int, bytes] | None:
        """(step, content) of the newest whole checkpoint, or None; damaged ones go to `faults`."""
        return next(self.usable(key), None)

    def usable(self, key: str) -> Iterator[tuple[int, bytes]]:
        """All whole checkpoints of the key, newest first."""
        for path in self._files(key):
            content = self._read(path)
            if content is not None:
                yield int(path.stem.removeprefix("step-")), content

    def drop(self, key: str) -> None:
        """Forget everything under the key (and under keys that begin with it and a slash)."""
        shutil.rmtree(self._folder(key), ignore_errors=True)

    def note(self, text: str) -> None:
        """Say that something was passed over."""
        LOG.warning(text)
        self.faults.append(text)

    def _folder(self, key: str) -> Path:
        assert _KEY.fullmatch(key), f"unsafe checkpoint key {key!r}"
        return self.root / key

    def _files(self, key: str) -> list[Path]:
        return sorted(self._folder(key).glob("step-*.ckpt"), reverse=True)

    def _read(self, path: Path) -> bytes | None:
        try:
            head, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:  # another attempt dropped it
            return None
        if head == FORMAT + b" " + _digest(content):
            return content
        self.note(f"checkpoint {path} is damaged; the one before it is used")
        return None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _write_durably(temporary: Path, final: Path, content: bytes) -> None:
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True)
class CheckpointSlot:
    """Where one attempt of one training saves; it reads what earlier attempts left, never later ones."""

    store: FolderStore
    position: str
    arm: str
    attempt: int

    @property
    def faults(self) -> list[str]:
        """What was passed over in this training's checkpoints."""
        return [text for text in self.store.faults if f"{self.position}/{self.arm}/" in text]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Store the state: tensors, numbers, strings and containers of them."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.store.put(self._key(self.attempt), step, buffer.getvalue())

    def load(self) -> dict[str, Any] | None:
        """The newest usable state of the newest attempt up to this one, on the CPU; None if there is none."""
        for attempt in range(self.attempt, 0, -1):
            for step, content in self.store.usable(self._key(attempt)):
                try:
                    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
                    reason = str(error).splitlines()[0]
                    self.store.note(
                        f"checkpoint {self._key(attempt)} step {step} refused: {reason}"
                    )
        return None

    def drop(self) -> None:
        """Forget the checkpoints of all attempts."""
        self.store.drop(f"{self.position}/{self.arm}")

    def _key(self, attempt: int) -> str:
        return f"{self.position}/{self.arm}/{attempt}"
