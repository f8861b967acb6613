"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP), turned into one exception in the main thread.

Ray swallows exceptions that are raised at the wrong moment, so within `held` a first signal is only
noted and `check` raises it; anywhere else, and at the second signal, it is raised at once. Ray also puts
a SIGTERM handler of its own in place while it starts, which exits with 15: that is translated at the end.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """The user, or the system, asked this process to stop. Not an Exception: nothing retries it."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)

    @property
    def exit_code(self) -> int:
        """130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.signum


class Stop:
    """Handles SIGNALS from entry to exit; the handlers of before are put back. A SIGHUP that was ignored
    before (nohup) stays ignored.

    with Stop() as stop:
        engine.run(conductor, study, store_root, stop=stop)
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._held = False
        self._before: dict[int, Any] = {}
        self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]

    def __enter__(self) -> Stop:
        before = {signum: signal.getsignal(signum) for signum in SIGNALS}
        nohup = before[signal.SIGHUP] == signal.SIG_IGN
        self._before = {s: h for s, h in before.items() if s != signal.SIGHUP or not nohup}
        self.arm()
        return self

    def arm(self) -> None:
        """Install the handlers (again): Ray, once connected, has put its own in their place, which
        end the process on SIGTERM."""
        for signum in self._before:
            signal.signal(signum, self._handle)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            raise Interrupted(signal.SIGTERM) from None

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
        if signum == signal.SIGHUP:
            self._let_go_of_the_terminal()
        if not (self._held and first):
            raise Interrupted(signum)

    def _let_go_of_the_terminal(self) -> None:
        """Writing to a terminal that is gone would raise, where the last words are said."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for handle in self._terminals:
            os.dup2(nowhere, handle)
        os.close(nowhere)


@contextmanager
def hangups_blocked() -> Iterator[None]:
    """Processes started within do not die of a closed terminal: the one that started them ends them.
    A SIGHUP that comes meanwhile is delivered afterwards."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
