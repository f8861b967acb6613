"""What a worker sends to the driver: ledger records, gathered into messages. Knows no Ray and no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from aim_tune.engine.resume import code_hash
from aim_tune.spec.study import Study

MAIL_S = 1.0
"""Epochs are sent together, at most once in this many seconds: a report costs about 0.02 s."""


@lru_cache(maxsize=4)
def study_of(study_json: str) -> Study:
    """The study of its JSON text, read once in a process."""
    return Study.from_dict(json.loads(study_json))


class Mail:
    """Gathers records and sends them in messages: starts and ends at once, epochs together."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._records: list[Mapping[str, Any]] = []
        self._number = 0
        self._sent = time.monotonic()

    def put(self, record: Mapping[str, Any]) -> None:
        """Take a record; `training_done` returns when the driver has it."""
        if record["event"] == "training_started":
            record = {**record, "code": code_hash()}  # a node may have joined with other code
        self._records.append(record)
        if record["event"] != "epoch" or time.monotonic() - self._sent > MAIL_S:
            self.send()

    def send(self, lost: str = "") -> None:
        """Send what is there. `lost` says why the job ends without a result."""
        if not self._records and not lost:
            return
        self._number += 1
        self._send({"message": self._number, "records": json.dumps(self._records), "lost": lost})
        self._records = []
        self._sent = time.monotonic()
