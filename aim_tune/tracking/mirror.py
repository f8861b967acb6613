"""Keeps MLflow equal to the ledger, from a thread of its own: a search never waits for it.

Records go into a queue; the thread replays them into its own History and writes each training as a
whole when it has ended (trainings over LIVE_S also on the way, so that they can be watched). A store
that stops answering only lets the list of runs to write grow; it is tried again, less and less often,
and what is still missing at the end is written when the same command runs again.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aim_tune.errors import ResourceError
from aim_tune.ledger import History, Training, read_history
from aim_tune.spec.study import Study
from aim_tune.tracking import views
from aim_tune.tracking.content import (
    DIGEST_TAG,
    RunContent,
    experiment_name,
    experiment_note,
    retrained_content,
    training_content,
    verdict_content,
)
from aim_tune.tracking.store import Seen, Store, default_uri, page, shown, unreachable

log = logging.getLogger(__name__)

LIVE_S = 30.0
"""Trainings longer than this appear while they run, and are brought up to date this often, seconds."""
REACH_S = 9.0
"""How long `start` waits for a server to answer at all, seconds."""
OPEN_S = 120.0
"""How long `start` waits for a store that does answer (a first schema takes 3 s and more), seconds."""
LONGEST_PAUSE_S = 30.0
"""Longest time between two tries of a store that does not answer, seconds."""

_Row = tuple[str, str]
"""(position, arm)."""


def log_retrained(
    *,
    study: Study,
    history: History,
    training: Training,
    note: str,
    files: Sequence[Path],
    results: Path,
    uri: str | None = None,
) -> str:
    """Log one retraining with its files, and return the name of its experiment.

    `history` holds the records of this training alone. It goes to an experiment of its own, so that
    the study's holds what the ledger holds. Raises ResourceError where the store cannot be reached.
    """
    name = f"{experiment_name(study)}/retrained"
    artifacts = None if uri else results / "mlartifacts" / study.name / "retrained"
    store = Store(uri or default_uri(results), artifacts=artifacts)
    store.open(name, f"Networks retrained from exported configurations of {study.name}.", "")
    try:
        seen = store.write(retrained_content(study, history, training, note), None)
        store.attach(seen, files)
    except Exception as error:
        raise unreachable(store.uri, error) from error
    return name


@dataclass(frozen=True, kw_only=True)
class _Finish:
    """The verdict, to be written after all trainings."""

    verdict: Mapping[str, Any]
    sentence: str
    files: tuple[Path, ...]


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
    ) -> None:
        self.uri = uri or default_uri(folder.parent)
        self._is_default = uri is None
        self._folder = folder
        self._study = study
        self._required = required
        self._notify = notify or logging.getLogger("aim_tune.tracking").warning
        self._live_s = live_s
        artifacts = None if uri else folder.parent / "mlartifacts" / study.name
        self._store = Store(self.uri, artifacts=artifacts)
        self._inbox: queue.SimpleQueue[Mapping[str, Any] | _Finish | None] = queue.SimpleQueue()
        self._reached = threading.Event()
        self._opened = threading.Event()
        self._refused: ResourceError | None = None
        self._thread: threading.Thread | None = None
        self._writer = _Writer(study, self._store, live_s)
        self._closing = False
        self._failures = 0
        self._retry_at = 0.0

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
            raise self._refused
        self._notify(f"{self._refused} Going on with the ledger alone.")

    def event(self, record: Mapping[str, Any]) -> None:
        """Take a record of the ledger; returns at once."""
        self._inbox.put(record)

    def finish(self, verdict: Mapping[str, Any], sentence: str, files: Sequence[Path] = ()) -> None:
        """Write the verdict run, after all trainings: its note is `sentence` and a table.

        `files` become its artifacts; those that are not there are left out. Returns at once.
        """
        self._inbox.put(_Finish(verdict=verdict, sentence=sentence, files=tuple(files)))

    @property
    def links(self) -> dict[str, str]:
        """Name of a saved view -> what follows the server's address; {} until they are in MLflow, and
        where its version does not know them."""
        return dict(self._writer.links)

    @property
    def views(self) -> dict[str, str]:
        """Name of a saved view -> its whole address (of a sqlite store: once mlflow/serve.sh runs)."""
        return {name: page(self.uri) + link for name, link in self.links.items()}

    def close(self, timeout_s: float = 60.0) -> str:
        """What is missing in MLflow, for people, after waiting for at most `timeout_s`; "": nothing.

        Runs of trainings that were interrupted end as KILLED.
        """
        if self._thread is None:
            return ""
        self._closing = True
        self._inbox.put(None)
        self._thread.join(timeout_s)
        missing = self._writer.backlog
        if not missing and not self._thread.is_alive():
            return ""
        where = "" if self._is_default else f" --tracking-uri {shown(self.uri)}"
        return (
            f"{max(missing, 1)} run{'s are' if missing > 1 else ' is'} not yet in MLflow at "
            f"{shown(self.uri)}; the ledger holds everything. To fill the gap: "
            f"python -m aim_tune.report {self._folder} --mlflow{where}"
        )

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
                if isinstance(item, _Finish):
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


class _Writer:
    """What is to be written and what is there already. Used by one thread at a time; may raise."""

    def __init__(self, study: Study, store: Store, live_s: float) -> None:
        self.finish: _Finish | None = None
        self.is_open = False
        self._study = study
        self._store = store
        self._live_s = live_s
        self._history = History()
        self._due: dict[_Row, float] = {}
        """Training -> when to write it, on the monotonic clock; 0: now."""
        self.links: dict[str, str] = {}
        """Name of a saved view -> its link."""
        self._seen: dict[str, Seen | None] = {}
        """Key -> its run; None: it may be there, look it up."""

    @property
    def backlog(self) -> int:
        """Number of runs still to write."""
        return len(self._due) + (self.finish is not None)

    def take_over(self, history: History) -> None:
        """Begin from a replayed ledger: everything it holds is to be checked."""
        self._history = history
        for training in history.rows():
            self._mark(training, now=True)

    def replay(self, record: Mapping[str, Any]) -> None:
        """Take one more record into account and note what it changes. One seen before is harmless."""
        history = self._history
        history.apply(record)
        match record["event"]:
            case "training_started" | "epoch":
                self._mark(history.trainings[record["position"], record["arm"]], now=False)
            case "training_done":
                self._mark(history.trainings[record["position"], record["arm"]], now=True)
            case "request_done":
                for arm in record.get("test", {}):
                    self._mark(history.trainings[record["position"], arm], now=True)
            case "resumed" | "interrupted" | "job_lost":
                for training in history.rows():
                    if training.status == "asked":  # nobody trains it now
                        self._mark(training, now=True)

    def open(self, on_answer: Callable[[], None]) -> None:
        """Open the store and learn which runs it holds. Raises ResourceError."""
        declared = self._history.declared or {}
        name, note = experiment_name(self._study), experiment_note(self._study)
        runs = self._store.open(
            name, note, str(declared.get("study_hash", self._study.study_hash)), on_answer
        )
        self._seen = dict(runs)
        self.is_open = True
        self._save_views()

    def _save_views(self) -> None:
        """Saved views, from the start, so that a search can be watched in them. Never raises: an
        MLflow that does not take them costs the views alone."""
        declared = round(1000 * (self._history.declared or {}).get("time", 0.0))
        try:
            if views.supported(self._store.version()):
                self._store.tag_experiment(views.tags(self._study, created_ms=declared))
                self.links = views.links(self._study, self._store.experiment_id)
        except Exception as error:
            log.info("no saved views in MLflow: %s", error)

    def write_due(self, *, everything: bool) -> None:
        """Write the trainings whose time has come, then the verdict once no training is left."""
        now = time.monotonic()
        for row, moment in list(self._due.items()):
            if everything or moment <= now:
                self._put(
                    training_content(self._study, self._history, self._history.trainings[row])
                )
                del self._due[row]
        if self.finish is not None and not self._due:
            self._write_verdict(self.finish)
            self.finish = None

    def _mark(self, training: Training, *, now: bool) -> None:
        """Note that a training's run is to be written: now, or at its next regular time."""
        if training.started is None or training.reused_from is not None:
            return  # nothing to show; a repeat is no training of its own
        row = (training.position, training.arm)
        regular = time.monotonic() + self._live_s
        self._due[row] = 0.0 if now else self._due.get(row, regular)

    def _put(self, content: RunContent) -> Seen:
        """Write one run. Should that fail, it is looked up next time: nobody knows how far it came."""
        known = self._known(content)
        self._seen[content.key] = None
        seen = self._store.write(content, known)
        self._seen[content.key] = seen
        return seen

    def _known(self, content: RunContent) -> Seen | None:
        """The run as it is in the store; None: it was never made."""
        if content.key not in self._seen:
            return None
        seen = self._seen[content.key]
        if seen is not None and seen.tags.get(DIGEST_TAG) == content.digest:
            seen.steps = {(r.key, r.step) for r in content.readings}
        elif seen is None or not seen.steps:
            return self._store.find(content.key)
        return seen

    def _write_verdict(self, finish: _Finish) -> None:
        """The verdict run. An older one that says something else, or is not on top, is replaced."""
        content = verdict_content(self._study, self._history, finish.verdict, finish.sentence)
        old = self._known(content)
        if old is not None and not (
            old.tags.get(DIGEST_TAG) == content.digest and self._store.is_newest(old)
        ):
            self._store.delete(old)
            del self._seen[content.key]
        self._store.attach(self._put(content), finish.files)
        self._store.describe(experiment_note(self._study, finish.sentence))
