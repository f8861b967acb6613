"""How far a study is: a live bar on a terminal, plain lines elsewhere. Fed with ledger records.

Time left is the pace of this run times what is planned. Best scores are on validation images: they
choose points and prove nothing. Test scores are not shown while a study runs. `waiting` is for the steps
before and after the trainings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from aim_tune.ledger import History
from aim_tune.reporting.words_slots import slots_line, slots_warning
from aim_tune.spec.study import Study
from aim_tune.stats.slots import slot_use

LINE_EVERY_S = 10.0
"""Shortest time between two plain lines."""
WEIGH_EVERY_S = 30.0
"""Shortest time between two looks at how well the slots are used: each reads the whole history."""
BAR = 40
"""Columns of the bar, where there is room."""


@contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """On a terminal, says what goes on until the block ends."""
    if not console.is_terminal or console.quiet:
        yield
        return
    with console.status(Text(f"{what}...", style="dim")):
        yield


@dataclass(kw_only=True)
class Tally:
    """What the records add up to. No clock, no output."""

    study: Study
    blocks: int = 0
    """Planned now: `extended` raises it, a closed gate lowers it."""
    later: bool = False
    """Whether the arms that wait for a "better" are trained."""
    finished: set[tuple[str, str]] = field(default_factory=set)
    """(position, arm) with a result."""
    running: set[tuple[str, str]] = field(default_factory=set)
    """(position, arm) in training now."""
    here: int = 0
    """Trainings finished in this run, reused ones not counted."""
    stage: str = "starting"
    best: dict[str, float] = field(default_factory=dict)
    """Arm -> best validation accuracy so far."""
    bad: dict[str, int] = field(default_factory=dict)
    """Status other than ok -> count; lost: jobs that ended without a result and were queued again."""

    def __post_init__(self) -> None:
        self.blocks = self.blocks or self.study.protocol.blocks

    @property
    def planned(self) -> int:
        """Trainings of the whole study; arms that wait count once they are called."""
        study, p = self.study, self.study.protocol
        block = p.twins + p.confirm
        explore = p.explore.requests * len(p.explore.arms or study.explore_arms)
        arms = len(study.arms if self.later else study.main_arms)
        trainings = explore + (self.blocks * block + p.export_seeds) * arms
        return max(trainings, len(self.finished))

    def known(self, history: History) -> None:
        """Take what an earlier run has done."""
        self.blocks = history.blocks or self.blocks
        for gate in history.gates.values():
            self.add(gate)
        for t in history.rows():
            if t.result is not None:
                self._finish(t.position, t.arm, t.result.status, t.result.val_accuracy)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take one more record."""
        match record["event"]:
            case "extended":
                self.blocks = record["blocks"]
            case "gate" if record["gate"].startswith("attribution"):
                self.later = record["open"]
            case "gate":
                self.blocks = self.blocks if record["open"] else record["blocks"]
            case "asked":
                if record.get("reused_from"):
                    self._reuse(record)
            case "training_started":
                self.running.add((record["position"], record["arm"]))
                self.stage = self.stage_of(record["position"])
            case "training_done":
                if (record["position"], record["arm"]) not in self.finished:
                    self.here += 1
                    result = record["result"]
                    self._finish(
                        record["position"], record["arm"], result["status"], result["val_accuracy"]
                    )
            case "job_lost":
                self.running -= {(record["position"], arm) for arm in record["arms"]}
                self.bad["lost"] = self.bad.get("lost", 0) + 1

    def _reuse(self, record: Mapping[str, Any]) -> None:
        for arm, _ in record["request"]["arms"]:
            self.finished.add((record["position"], arm))

    def _finish(self, position: str, arm: str, status: str, score: float | None) -> None:
        self.finished.add((position, arm))
        self.running.discard((position, arm))
        if status != "ok":
            self.bad[status] = self.bad.get(status, 0) + 1
        if score is not None:
            self.best[arm] = max(score, self.best.get(arm, 0.0))

    def stage_of(self, position: str) -> str:
        """The stage of a position, for people."""
        parts = position.split("/")
        if parts[0] not in ("block", "after"):
            return {"match": "measuring step times"}.get(parts[0], parts[0])
        return f"block {int(parts[1]) + 1} of {self.blocks}, {parts[2]}"

    @property
    def best_words(self) -> str:
        """The best score of each arm; empty before the first."""
        arms = [arm for arm in self.study.arms if arm in self.best]
        best = ", ".join(f"{arm} {100 * self.best[arm]:.1f} %" for arm in arms)
        return f"best validation: {best}" if best else ""

    @property
    def bad_words(self) -> str:
        """What went wrong, counted; empty where nothing did."""
        return ", ".join(f"{count} {status}" for status, count in self.bad.items())


class Progress:
    """Shows the progress of a study; feed it every ledger record with `event`, end with `close`.

    `history` is what earlier runs have done; where it is the ledger's own, which grows, the use of the slots
    is watched too. `clock` gives seconds and is there for tests.
    """

    def __init__(
        self,
        study: Study,
        *,
        console: Console,
        slots: int = 1,
        history: History | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._slots, self._clock = console, max(1, slots), clock
        self._study, self._history = study, history
        self._used, self._warned, self._weighed = "", False, clock()
        self._tally = Tally(study=study)
        if history is not None:
            self._tally.known(history)
        self._began: float | None = None
        self._last_line = -LINE_EVERY_S + clock()
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=console, refresh_per_second=2, transient=True
            )
            self._live.start()

    def event(self, record: Mapping[str, Any]) -> None:
        """Take a ledger record; prints what went wrong, and a line now and then."""
        if record["event"] == "training_started" and self._began is None:
            self._began = self._clock()
        self._tally.add(record)
        self._complain(record)
        self._weigh()
        due = self._clock() - self._last_line >= LINE_EVERY_S
        if self._live is None and due and record["event"] == "training_done":
            self._last_line = self._clock()
            self._say(self._line())

    def close(self) -> None:
        """Stop the bar and leave one last line."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._weigh(at_last=True)
        self._say(self._line())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def time_left(self) -> str:
        """about 3 min left; empty until the pace is known."""
        tally = self._tally
        left = tally.planned - len(tally.finished)
        if self._began is None or tally.here < self._slots or left == 0:
            return ""
        seconds = (self._clock() - self._began) / tally.here * left
        return f"about {duration(seconds)} left"

    def _complain(self, record: Mapping[str, Any]) -> None:
        if record["event"] == "job_lost":
            self._say(
                f"lost {record['position']} ({', '.join(record['arms'])}): {record['reason']}"
            )
        elif record["event"] == "training_done" and record["result"]["status"] != "ok":
            result = record["result"]
            why = f": {result['detail']}" if result.get("detail") else ""
            self._say(f"{record['position']} {record['arm']} {result['status']}{why}")

    def _weigh(self, *, at_last: bool = False) -> None:
        """Look at the use of the slots now and then; say once, and at last, that it is low."""
        if self._history is None or (self._clock() - self._weighed < WEIGH_EVERY_S and not at_last):
            return
        self._weighed = self._clock()
        use = slot_use(self._study, self._history, now=None if at_last else self._history.last_time)
        if use is None:
            return
        self._used = slots_line(use)
        warning = slots_warning(self._study, use)
        if warning and (at_last or not self._warned):
            self._warned = True
            self._say(warning)

    def _say(self, text: str) -> None:
        """A terminal's lines break between words; a file's do not break."""
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def _counts(self) -> str:
        return f"{len(self._tally.finished)}/{self._tally.planned} trainings"

    def _line(self) -> str:
        tally = self._tally
        over = len(tally.finished) == tally.planned
        done = (self._counts(), self.time_left(), "" if over else tally.stage)
        return _joined(*done, tally.best_words, self._used, tally.bad_words)

    def _picture(self) -> Group:
        """The live view: a bar with time left, what goes on, and the best so far."""
        tally, counts, left = self._tally, self._counts(), self.time_left()
        width = max(10, min(BAR, self._console.width - len(counts) - len(left) - 4))
        bar = ProgressBar(total=tally.planned, completed=len(tally.finished), width=width)
        row = Table.grid(padding=(0, 2))
        row.add_row(bar, Text(counts, no_wrap=True), Text(left, style="dim", no_wrap=True))
        doing = _joined(tally.stage, self._slots_now(), tally.bad_words)
        return Group(row, *(Text(t, style="dim") for t in (doing, tally.best_words) if t))

    def _slots_now(self) -> str:
        many = "slot" if self._slots == 1 else "slots"
        return f"{len(self._tally.running)} of {self._slots} {many} training"


def _joined(*parts: str) -> str:
    return " · ".join(p for p in parts if p)


def duration(seconds: float) -> str:
    """50 s, 4 min, 2 h 05 min.

    >>> duration(7500)
    '2 h 05 min'
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
