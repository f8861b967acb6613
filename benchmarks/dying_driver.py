"""A search that kills itself (SIGKILL) at a moment that chance seldom hits. For random_kills.py.

    python benchmarks/dying_driver.py MOMENT COUNT STUDY.yaml [options of a search]

    append   half of the COUNT-th record is written
    mirror   the COUNT-th new run is being written to MLflow; the process that writes it dies as well
    resume   COUNT requests are taken up again, no training runs yet
    verdict  every training is done, the verdict is not written

It dies only while nothing runs for the third time: a third loss ends a training as failed, which is the rule
and no fault. What it was doing is left in the file named by AIM_TUNE_DEATH.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from aim_tune import search
from aim_tune.engine.conductor import ATTEMPTS, Conductor
from aim_tune.ledger import History, Ledger
from aim_tune.tracking import apart

MOMENTS = ("append", "mirror", "resume", "verdict")
WRITING_S = 0.02
"""How long MLflow is given for a run that it will not finish; a whole one takes about 0.05 s."""


class Trap:
    """Counts what happens, and ends this process at the moment it was set for."""

    def __init__(self, moment: str, count: int) -> None:
        self.moment, self.left = moment, count
        self.history: History | None = None
        self._lock = threading.Lock()

    def sprung(self, moment: str) -> bool:
        """Whether it is time to die."""
        with self._lock:
            self.left -= moment == self.moment
            running = [t for t in self._trainings() if t.status == "running"]
            spare = all(t.attempts - t.spared < ATTEMPTS for t in running)
            return moment == self.moment and self.left <= 0 and spare

    def _trainings(self) -> list[Any]:
        return list(self.history.trainings.values()) if self.history else []


def die(doing: str) -> NoReturn:
    """Leave word and end without any clearing up."""
    Path(os.environ["AIM_TUNE_DEATH"]).write_text(doing)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def arm(trap: Trap) -> None:
    """Put the trap into the ledger, the conductor and the store."""
    append, write = Ledger.append, Ledger._write
    take, ask = Conductor._take, apart.Apart._ask
    current = [""]

    def noted(ledger: Ledger, event: Mapping[str, Any]) -> dict[str, Any]:
        trap.history = ledger.history
        names = (event["event"], event.get("position", ""), event.get("arm", ""))
        current[0] = " ".join(str(name) for name in names if name)
        if event["event"] == "verdict" and trap.sprung("verdict"):
            die("before the verdict was written")
        return append(ledger, event)

    def half(ledger: Ledger, line: bytes, **kwargs: Any) -> None:
        if trap.sprung("append"):
            ledger._file.write(line[: len(line) // 2])
            os.fsync(ledger._file.fileno())
            die(f"in the middle of writing '{current[0]}'")
        write(ledger, line, **kwargs)

    def taken(conductor: Conductor, request: Any) -> None:
        if request.position in conductor.history.requests and trap.sprung("resume"):
            die(f"while it took up {request.position} again")
        take(conductor, request)

    def asked(store: apart.Apart, name: str, *args: Any) -> Any:
        is_new = name == "write" and args[1] is None
        if is_new and trap.sprung("mirror") and store._child is not None:
            apart._put(store._child.stdin, (name, *args))
            time.sleep(WRITING_S)
            store._child.kill()
            die(f"while MLflow wrote the run '{args[0].name}'")
        return ask(store, name, *args)

    Ledger.append, Ledger._write = noted, half  # type: ignore[method-assign]
    Conductor._take, apart.Apart._ask = taken, asked  # type: ignore[method-assign]


if __name__ == "__main__":
    arm(Trap(sys.argv[1], int(sys.argv[2])))
    sys.exit(search.main(sys.argv[3:]))
