"""What a worker sends to the driver: ledger records, gathered into messages. Knows no Ray and no torch."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from aim_tune.engine.resume import code_hash
from aim_tune.spec.study import Study

MAIL_S = 1.0
"""Epochs are sent together, at latest so many seconds after the first of them: the driver takes 5 to
9 ms for a message."""


@lru_cache(maxsize=4)
def study_of(study_json: str) -> Study:
    """The study of its JSON text, read once in a process."""
    return Study.from_dict(json.loads(study_json))


class Mail:
    """Gathers records and sends them in messages: starts and ends at once, epochs together.

    `send` blocks until the driver has read a message, so a thread calls it and no training waits, but for
    the end of one. What it raises, the next `put` or `close` raises.
    """

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._records: list[Mapping[str, Any]] = []
        self._due = 0.0
        """When the records have to go, on the monotonic clock."""
        self._number = 0
        self._sending = self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._deliver, name="mail", daemon=True)
        self._thread.start()

    def put(self, record: Mapping[str, Any]) -> None:
        """Take a record; `training_done` returns when the driver has it."""
        event = record["event"]
        if event == "training_started":
            record = {**record, "code": code_hash()}  # a node may have joined with other code
        due = time.monotonic() + (MAIL_S if event == "epoch" else 0)
        with self._changed:
            self._due = min(self._due, due) if self._records else due
            self._records.append(record)
            self._changed.notify_all()
            if event == "training_done":
                self._changed.wait_for(lambda: self._idle)
            self._raise()

    def close(self, lost: str = "") -> None:
        """Send what is there, and why the job ends without a result, if it does."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()
        if lost:
            self._number += 1
            self._send({"message": self._number, "records": "[]", "lost": lost})

    @property
    def _idle(self) -> bool:
        return self._failure is not None or not (self._records or self._sending)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _deliver(self) -> None:
        """The thread: one message after the other, until closed or failed."""
        while records := self._collected():
            self._number += 1
            try:
                self._send({"message": self._number, "records": json.dumps(records), "lost": ""})
            except BaseException as error:  # Ray ends a trial with SystemExit
                self._failure = error
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            if self._failure is not None:
                return

    def _collected(self) -> list[Mapping[str, Any]]:
        """The records of the next message, once they are due; [] once closed and all are sent."""
        with self._changed:
            while not self._closed:
                left = self._due - time.monotonic() if self._records else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            records, self._records = self._records, []
            self._sending = bool(records)
            return records
