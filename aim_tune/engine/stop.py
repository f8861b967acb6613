"""Ctrl-C and SIGTERM, turned into one exception in the main thread.

Ray swallows exceptions that are raised at the wrong moment, so within `held` a first signal is only
noted and `check` raises it; anywhere else, and at the second signal, it is raised at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asked this process to stop. Not an Exception: nothing retries it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signum


class Stop:
    """Handles SIGINT and SIGTERM from entry to exit; the handlers of before are put back.

    with Stop() as stop:
        engine.run(conductor, study, store_root, stop=stop)
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.arm()
        return self

    def arm(self) -> None:
        """Install the handlers (again): Ray, once connected, has put its own in their place, which
        end the process on SIGTERM."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, a first signal waits for `check`."""
        self.arm()
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first, self._signum = self._signum is None, signum
        if not (self._held and first):
            raise Interrupted(signum)
