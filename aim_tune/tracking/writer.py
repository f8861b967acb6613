"""What MLflow lacks of a ledger, run by run: replays records, knows what is due and what is there.

Used by the mirror's thread, and by one thread at a time; may raise, and nothing is lost if it does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.ledger import History, Training
from aim_tune.spec.study import Study
from aim_tune.tracking import views
from aim_tune.tracking.content import (
    DIGEST_TAG,
    RunContent,
    Seen,
    experiment_name,
    training_content,
    verdict_content,
)
from aim_tune.tracking.notes import experiment_note

if TYPE_CHECKING:  # it imports MLflow
    from aim_tune.tracking.store import Store

log = logging.getLogger(__name__)

Row = tuple[str, str]
"""(position, arm)."""


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The verdict, to be written after all trainings."""

    verdict: Mapping[str, Any]
    sentence: str
    files: tuple[Path, ...]
    picture: bytes | None = None
    """The verdict strip, PNG."""


class Writer:
    """What is to be written and what is there already. Used by one thread at a time; may raise."""

    def __init__(self, study: Study, store: Store, live_s: float) -> None:
        self.finish: Finish | None = None
        self.is_open = False
        self._study = study
        self._store = store
        self._live_s = live_s
        self._history = History()
        self._due: dict[Row, float] = {}
        """Training -> when to write it, on the monotonic clock; 0: now."""
        self.links: dict[str, str] = {}
        """Name of a saved view -> its link."""
        self._listed = False
        self._seen: dict[str, Seen | None] = {}
        """Key -> its run, once listed; None: it may be there, look it up."""

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
        """Open the store. Raises ResourceError."""
        name, note = experiment_name(self._study), experiment_note(self._study)
        self._store.open(name, note, on_answer)
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
        self._list()
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

    def _list(self) -> None:
        """Learn, once, which runs the store holds: 20 s for 20,000, so `open` does not wait for it."""
        if not self._listed:
            declared = self._history.declared or {}
            study_hash = str(declared.get("study_hash", self._study.study_hash))
            self._seen = dict(self._store.runs(study_hash))
            self._listed = True

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
            seen.images = {(i.key, i.step) for i in content.images}
        elif seen is None or not seen.steps:
            return self._store.find(content.key)
        return seen

    def _write_verdict(self, finish: Finish) -> None:
        """The verdict run. An older one that says something else, or is not on top, is replaced."""
        content = verdict_content(
            self._study,
            self._history,
            finish.verdict,
            finish.sentence,
            pictured=finish.picture is not None,
        )
        old = self._known(content)
        if old is not None and not (
            old.tags.get(DIGEST_TAG) == content.digest and self._store.is_newest(old)
        ):
            self._store.delete(old)
            del self._seen[content.key]
        seen = self._put(content)
        self._store.attach(seen, finish.files, finish.picture)
        shown = seen.run_id if finish.picture else ""
        self._store.describe(experiment_note(self._study, finish.sentence, shown))
