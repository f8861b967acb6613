"""How a study stands, read from its ledger alone: for another terminal, a script, a colleague.

The pace is that of the last trainings; nothing is claimed of arms beyond their best validation score,
which chooses points and proves nothing.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from aim_tune.ledger import History, Training
from aim_tune.reporting.progress import Tally, duration
from aim_tune.reporting.words_slots import slots_line, slots_warning
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import is_whole, study_status
from aim_tune.stats.slots import SlotUse, slot_use

PACE = 50
"""Trainings the pace is taken from."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A training that runs now."""

    position: str
    arm: str
    attempt: int
    node: str
    seconds: float
    """Since this attempt began."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """A study at one moment."""

    name: str
    state: str
    """finished, failed (at its end: too many trainings failed), running, interrupted (by a signal), or
    stopped (killed: nobody is at work)."""
    driver: str
    """Who is at work, such as "pid 4711 on host laptop"; empty: nobody."""
    stage: str
    blocks_done: int
    blocks: int
    trainings_done: int
    trainings: int
    seconds_left: float | None
    """None: unknown, or nobody is at work."""
    best: dict[str, float]
    """Arm -> best validation accuracy so far."""
    bad: dict[str, int]
    """Status other than ok -> count."""
    running: list[Running]
    slot_use: SlotUse | None
    """How much of its slots the study used so far; None: nothing has trained."""
    slot_warning: str
    """Where that is little: why, and what to do."""
    last_event_s: float | None
    """Age of the last record."""
    verdict: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def status_of(
    study: Study,
    history: History,
    driver: str,
    *,
    clock: Callable[[], float] = time.time,
) -> Status:
    """The status now. `driver`: from ledger.holder."""
    now, whole = clock(), is_whole(study, history)
    tally = Tally(study=study)
    tally.known(history)
    running = [t for t in history.rows() if t.status == "running"] if driver else []
    left = max(0, tally.planned - len(tally.finished))
    use = slot_use(study, history, now=now if driver else None)
    pace = _pace(history)
    return Status(
        name=study.name,
        state=_state(study, history, driver),
        driver=driver,
        stage=tally.stage_of(running[-1].position) if running else "",
        blocks_done=_blocks_done(study, history, tally.blocks),
        blocks=tally.blocks,
        trainings_done=len(tally.finished),
        trainings=tally.planned,
        seconds_left=pace * left if pace is not None and driver and not whole else None,
        best=tally.best,
        bad=tally.bad,
        running=[_running(t, now) for t in running],
        slot_use=use,
        slot_warning=slots_warning(study, use) if use else "",
        last_event_s=None if history.last_time is None else max(0.0, now - history.last_time),
        verdict=(history.verdict or {}).get("verdict"),
    )


def words(status: Status) -> str:
    """The status for people."""
    s = status
    age = "" if s.last_event_s is None else f", last event {duration(s.last_event_s)} ago"
    who = f" by {s.driver}" if s.driver else ""
    left = f", about {duration(s.seconds_left)} left" if s.seconds_left else ""
    lines = [
        f"{s.name}: {s.state}{who}{age}",
        f"  {s.trainings_done} of {s.trainings} trainings, {s.blocks_done} of {s.blocks} blocks{left}",
    ]
    if s.slot_use:
        lines.append(f"  {s.slot_warning or slots_line(s.slot_use)}")
    if s.best:
        best = ", ".join(f"{arm} {100 * score:.1f} %" for arm, score in s.best.items())
        lines.append(f"  best validation: {best}")
    if s.bad:
        lines.append("  " + ", ".join(f"{count} {what}" for what, count in s.bad.items()))
    for r in s.running:
        attempt = f", attempt {r.attempt}" if r.attempt > 1 else ""
        lines.append(f"  {r.position} {r.arm} on {r.node}{attempt}, {duration(r.seconds)}")
    if s.verdict:
        lines.append(f"  verdict: {s.verdict}")
    if s.state in ("interrupted", "stopped"):
        lines.append("  The same command again goes on from here.")
    return "\n".join(lines)


def _state(study: Study, history: History, driver: str) -> str:
    if is_whole(study, history):
        return "failed" if study_status(study, history) == "failed" else "finished"
    if driver:
        return "running"
    return "interrupted" if history.interrupted else "stopped"


def _pace(history: History) -> float | None:
    """Seconds per training, from the last ones; the longest tenth of the gaps is left out: pauses."""
    ends = sorted(t.finished for t in history.rows() if t.finished is not None)[-PACE - 1 :]
    gaps = [b - a for a, b in itertools.pairwise(ends)]
    return statistics.fmean(sorted(gaps)[: max(1, 9 * len(gaps) // 10)]) if gaps else None


def _blocks_done(study: Study, history: History, blocks: int) -> int:
    """Blocks whose requests are all done."""
    p = study.protocol
    kinds = [f"twin/{i}" for i in range(p.twins)] + [f"confirm/{i}" for i in range(p.confirm)]
    return sum(all(f"block/{b}/{kind}" in history.done for kind in kinds) for b in range(blocks))


def _running(training: Training, now: float) -> Running:
    return Running(
        position=training.position,
        arm=training.arm,
        attempt=training.attempts,
        node=training.node,
        seconds=max(0.0, now - (training.begun or now)),
    )
