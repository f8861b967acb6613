"""Trainings that hang: begun, and long past the time limit without an end.

The loop ends a slow training by itself, between two steps; whoever hangs in its data, in a compiler or in
a driver call is ended from outside. Without `resources.time_limit_s` nobody can tell slow from hanging.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_S = 60.0
"""Beyond the time limit: building, compiling, a last validation pass and the predictions are not in it."""


class Hanging(BaseException):
    """Raised in a training that hangs in this process. Not an Exception: no training swallows it."""


def patience_s(time_limit_s: float, grace_s: float = GRACE_S) -> float:
    """Seconds after which a training that was begun is taken for hanging.

    >>> patience_s(10.0), patience_s(1000.0)
    (70.0, 1500.0)
    """
    return time_limit_s + max(grace_s, time_limit_s / 2)


class Watchdog:
    """Knows from the records of one worker which arm it trains, and for how long."""

    def __init__(
        self,
        time_limit_s: float | None,
        grace_s: float = GRACE_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = None if time_limit_s is None else patience_s(time_limit_s, grace_s)
        self._clock = clock
        self.arm: str | None = None
        """Which arm trains now."""
        self._since = 0.0

    def heard(self, record: Mapping[str, Any]) -> None:
        """Take a record of the worker."""
        if record["event"] == "training_started":
            self.arm, self._since = record["arm"], self._clock()
        elif record["event"] == "training_done":
            self.arm = None

    @property
    def hanging(self) -> str | None:
        """The arm whose training hangs, or None."""
        late = self._patience is not None and self._clock() - self._since > self._patience
        return self.arm if late else None

    @property
    def reason(self) -> str:
        """What to write about it."""
        return (
            f"no end {self._patience:.0f} s after its start, long past resources.time_limit_s: it hung "
            "and was ended"
        )


@contextmanager
def alarm(time_limit_s: float | None, grace_s: float = GRACE_S) -> Iterator[Callable[[], None]]:
    """Within, each call of what is given sets an alarm: unless it is set again in time, Hanging is raised.

    Works between two instructions of Python, in the main thread; elsewhere it does nothing.
    """
    if time_limit_s is None or threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise Hanging

    def set_again() -> None:
        signal.setitimer(signal.ITIMER_REAL, patience_s(time_limit_s, grace_s))

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield set_again
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
