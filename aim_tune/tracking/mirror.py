"""Keeps MLflow equal to the ledger, from a thread of its own: a search never waits for it.

Records go into a queue; the thread replays them into its own History and writes each training as a
whole when it has ended (trainings over LIVE_S also on the way, so that they can be watched). A store
that stops answering only lets the list of runs to write grow; it is tried again, less and less often,
and what is still missing at the end is written when the same command runs again.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aim_tune.errors import ResourceError
from aim_tune.ledger import History, read_history
from aim_tune.spec.study import Study
from aim_tune.tracking.apart import Apart
from aim_tune.tracking.place import default_uri, page, shown, unreachable
from aim_tune.tracking.writer import Finish, Writer

LIVE_S = 30.0
"""Trainings longer than this appear while they run, and are brought up to date this often, seconds."""
REACH_S = 9.0
"""How long `start` waits for a server to answer at all, seconds."""
OPEN_S = 120.0
"""How long `start` waits for a store that does answer (a first schema takes 3 s and more), seconds."""
STALL_S = 60.0
"""How long `close` waits for a run to be written, seconds."""
LONGEST_PAUSE_S = 30.0
"""Longest time between two tries of a store that does not answer, seconds."""


class Mirror:
    """Shows the study of one results folder in MLflow.

        mirror = Mirror(folder=Path("results/quickstart"), study=study)
        mirror.start()                      # once the ledger holds `declared`
        ... mirror.event(record) ...        # as a listener of the conductor
        mirror.finish(verdict, sentence, files)
        missing = mirror.close()            # "" where MLflow holds everything

    `folder` is results/NAME; what its ledger already holds is caught up with. `uri` None: the sqlite
    store in the folder above, with artifacts beside it. `required`: `start` raises where the store
    cannot be reached; otherwise the search goes on without it. `notify` takes lines for people.
    `make_store`: `Apart`, or `store.Store` to have MLflow in this process.
    """

    def __init__(
        self,
        *,
        folder: Path,
        study: Study,
        uri: str | None = None,
        required: bool = True,
        notify: Callable[[str], None] | None = None,
        live_s: float = LIVE_S,
        make_store: Callable[..., Any] = Apart,
    ) -> None:
        self.uri = uri or default_uri(folder.parent)
        self._is_default = uri is None
        self._folder = folder
        self._study = study
        self._required = required
        self._notify = notify or logging.getLogger("aim_tune.tracking").warning
        self._live_s = live_s
        artifacts = None if uri else folder.parent / "mlartifacts" / study.name
        self._store = make_store(self.uri, artifacts=artifacts)
        self._inbox: queue.SimpleQueue[Mapping[str, Any] | Finish | None] = queue.SimpleQueue()
        self._reached = threading.Event()
        self._opened = threading.Event()
        self._refused: ResourceError | None = None
        self._thread: threading.Thread | None = None
        self._writer = Writer(study, self._store, live_s)
        self._closing = False
        self._failures = 0
        self._retry_at = 0.0

    def prepare(self) -> None:
        """Let MLflow be imported while the caller does something else. Optional; `start` follows."""
        if isinstance(self._store, Apart):
            self._store.prepare()

    def start(self) -> None:
        """Begin, from what the ledger holds by now.

        Raises ResourceError, naming the URI, where the store cannot be opened and is required.
        """
        ledger = self._folder / "ledger.jsonl"
        self._writer.take_over(read_history(ledger) if ledger.is_file() else History())
        self._thread = threading.Thread(target=self._work, name="mlflow-mirror", daemon=True)
        self._thread.start()
        if not self._reached.wait(REACH_S):
            self._refused = unreachable(self.uri, f"no answer within {REACH_S:.0f} s")
        elif not self._opened.wait(OPEN_S):
            self._refused = unreachable(self.uri, f"not ready within {OPEN_S:.0f} s")
        if self._refused is None:
            return
        if self._required:
            self._closing = True
            self._inbox.put(None)
            self._thread = None
            raise self._refused
        self._notify(f"{self._refused} Going on with the ledger alone.")

    def event(self, record: Mapping[str, Any]) -> None:
        """Take a record of the ledger; returns at once."""
        self._inbox.put(record)

    def finish(
        self,
        verdict: Mapping[str, Any],
        sentence: str,
        files: Sequence[Path] = (),
        picture: bytes | None = None,
    ) -> None:
        """Write the verdict run, after all trainings: its note is `sentence`, `picture` (PNG) and a table.

        `files` become its artifacts; those that are not there are left out. Returns at once.
        """
        self._inbox.put(
            Finish(verdict=verdict, sentence=sentence, files=tuple(files), picture=picture)
        )

    @property
    def links(self) -> dict[str, str]:
        """Name of a saved view -> what follows the server's address; {} until they are in MLflow, and
        where its version does not know them."""
        return dict(self._writer.links)

    @property
    def views(self) -> dict[str, str]:
        """Name of a saved view -> its whole address (of a sqlite store: once mlflow/serve.sh runs)."""
        return {name: page(self.uri) + link for name, link in self.links.items()}

    def close(self, timeout_s: float = math.inf) -> str:
        """What is missing in MLflow, for people; "": nothing.

        Waits for as long as runs are being written (STALL_S for one), and for at most `timeout_s`. Runs of
        trainings that were interrupted end as KILLED.
        """
        if self._thread is None:  # never started, or refused
            self._store.close()
            return ""
        self._closing = True
        self._inbox.put(None)
        self._wait_for(self._thread, time.monotonic() + timeout_s)
        missing = self._writer.backlog
        waits = self._thread.is_alive()
        self._store.close()
        if not missing and not waits:
            return ""
        where = "" if self._is_default else f" --tracking-uri {shown(self.uri)}"
        return (
            f"{max(missing, 1)} run{'s are' if missing > 1 else ' is'} not yet in MLflow at "
            f"{shown(self.uri)}; the ledger holds everything. To fill the gap: "
            f"python -m aim_tune.track {self._folder}{where}"
        )

    def _wait_for(self, thread: threading.Thread, end: float) -> None:
        """Until the thread is done, writes nothing any more, or it is `end`, on the monotonic clock."""
        while thread.is_alive() and time.monotonic() < end:
            before = self._left()
            thread.join(min(STALL_S, end - time.monotonic()))
            if self._left() == before:
                return

    def _left(self) -> tuple[int, int]:
        """Runs still to write, records still to look at."""
        return self._writer.backlog, self._inbox.qsize()

    # What follows runs in the thread.

    def _work(self) -> None:
        self._try_to_open()
        if self._refused is not None and self._required:
            return
        while True:
            self._drain()
            if self._closing or time.monotonic() >= self._retry_at:
                self._catch_up()
            if self._closing and self._inbox.empty():
                return

    def _drain(self) -> None:
        """Replay what has come; wait up to a second for the first record."""
        try:
            item = self._inbox.get(timeout=0.01 if self._closing else 1.0)
            while True:
                if isinstance(item, Finish):
                    self._writer.finish = item
                elif item is not None:
                    self._writer.replay(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _try_to_open(self) -> None:
        """The first try, which `start` waits for."""
        try:
            self._writer.open(self._reached.set)
        except ResourceError as error:
            self._refused = error
            self._pause()
        self._reached.set()
        self._opened.set()

    def _catch_up(self) -> None:
        """Write what is due. A failure costs a pause, never a record."""
        try:
            if not self._writer.is_open:
                self._writer.open(self._reached.set)
            self._writer.write_due(everything=self._closing)
        except Exception as error:
            if not self._failures and not self._closing:
                reason = " ".join(str(error).split())[:200]
                self._notify(
                    f"MLflow at {shown(self.uri)} does not take runs ({reason}). The search goes "
                    "on; they follow when it is back."
                )
            self._pause()
        else:
            if self._failures and not self._closing:
                self._notify(f"MLflow at {shown(self.uri)} is back and up to date.")
            self._failures = 0

    def _pause(self) -> None:
        self._failures += 1
        longest = min(2.0**self._failures, LONGEST_PAUSE_S)
        self._retry_at = time.monotonic() + longest * random.uniform(0.5, 1.0)
