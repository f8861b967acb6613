"""Checkpoints that survive kills: whole or absent, digest-checked, plain types, fenced by attempt.

A file is one line (format and SHA-256) and the payload, in a folder or a bucket (`storage`). The two
newest of an attempt are kept: if the newest is damaged, the one before is used and that is said.
Reading executes nothing (weights_only). Never Ray checkpoints.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aim_tune.storage import open_storage

LOG = logging.getLogger(__name__)
FORMAT = b"aim_tune checkpoint 1"
KEPT = 2
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class CheckpointStore:
    """Bytes under (key, step) in a folder or bucket. Keys are relative paths: block/0/twin/1/aim/1."""

    def __init__(self, place: str | Path) -> None:
        self._storage = open_storage(place)
        self.faults: list[str] = []
        """One line per damaged file that was passed over."""

    def put(self, key: str, step: int, content: bytes) -> None:
        """Store durably, then forget all but the newest two; raises ResourceError if it cannot."""
        name = f"{_safe(key)}/step-{step:010d}.ckpt"
        self._storage.put(name, FORMAT + b" " + _digest(content) + b"\n" + content)
        for old in self._names(key)[KEPT:]:
            self._storage.drop(old)

    def latest(self, key: str) -> tuple[int, bytes] | None:
        """(step, content) of the newest whole checkpoint, or None; damaged ones go to `faults`."""
        return next(self.usable(key), None)

    def usable(self, key: str) -> Iterator[tuple[int, bytes]]:
        """All whole checkpoints of the key, newest first."""
        for name in self._names(key):
            content = self._read(name)
            if content is not None:
                yield int(Path(name).stem.removeprefix("step-")), content

    def drop(self, key: str) -> None:
        """Forget everything under the key (and under keys that begin with it and a slash)."""
        self._storage.drop(_safe(key))

    def note(self, text: str) -> None:
        """Say that something was passed over."""
        LOG.warning(text)
        self.faults.append(text)

    def _names(self, key: str) -> list[str]:
        return self._storage.names(_safe(key))[::-1]

    def _read(self, name: str) -> bytes | None:
        found = self._storage.get(name)
        if found is None:  # another attempt dropped it
            return None
        head, _, content = found.partition(b"\n")
        if head == FORMAT + b" " + _digest(content):
            return content
        self.note(f"checkpoint {self._storage.uri}/{name} is damaged; the one before it is used")
        return None


def _safe(key: str) -> str:
    assert _KEY.fullmatch(key), f"unsafe checkpoint key {key!r}"
    return key


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


@dataclass(frozen=True)
class CheckpointSlot:
    """Where one attempt of one training saves; it reads what earlier attempts left, never later ones."""

    store: CheckpointStore
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
