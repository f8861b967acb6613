"""How much of its slots a study used: the share of slot time in trainings, and what the rest waited for.

Read from the ledger alone, so that the running search, its status, the report and MLflow say the same.
A run counts from its first training to its last; a training's time holds its validation passes. Idle
time is told apart by when it was: in explore, before a planned look, at a run's end, between trainings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np

from aim_tune.ledger import History, Training
from aim_tune.spec.study import Study

LOW = 0.8
"""A share below this is worth a word."""
ENOUGH_PER_SLOT, ENOUGH_S = 8, 120.0
"""Trainings per slot and seconds before a share says anything: workers take some to start."""

Window: TypeAlias = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class SlotUse:
    """What became of the slots' time. The five shares sum to 1."""

    slots: int
    """Trainings at a time, in the latest run."""
    trainings: int
    seconds: float
    """From the first training of each run to its last."""
    training_s: float
    """Mean of a training."""
    share: float
    """Of slot time in trainings."""
    explore: float
    """Idle while explore ran."""
    looks: float
    """Idle before a planned look, which waits until the blocks before it are whole."""
    end: float
    """Idle after the run's last job was handed out: nothing was left to do."""
    between: float
    """Idle otherwise: starting, loading data, writing records."""

    @property
    def busy(self) -> float:
        """Slots that trained, on average."""
        return self.share * self.slots

    @property
    def low(self) -> bool:
        """Whether slots that had work to do trained for too little of their time. The end does not count."""
        enough = self.trainings >= ENOUGH_PER_SLOT * self.slots and self.seconds >= ENOUGH_S
        return enough and self.share < LOW * (1 - self.end)

    @property
    def cause(self) -> str:
        """Where most was lost: explore, looks or between."""
        return max(("explore", "looks", "between"), key=lambda name: float(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def slot_use(study: Study, history: History, *, now: float | None = None) -> SlotUse | None:
    """The use so far; None before the first training, and for a ledger of a version that kept no slots.

    `now` is where trainings that still run are cut; None: they do not count.
    """
    spells = list(_spells(history, now))
    runs = [_Run(study, slots, part) for slots, part in _by_run(history, spells) if part]
    time = sum(run.time for run in runs)
    if not time:
        return None
    lost = {name: sum(r.idle(getattr(r, name)) for r in runs) / time
            for name in ("explore", "looks", "end")}  # fmt: skip
    share = min(1.0, sum(run.busy for run in runs) / time)
    return SlotUse(
        slots=history.runs[-1][1],
        trainings=len(spells),
        seconds=sum(run.whole[1] - run.whole[0] for run in runs),
        training_s=sum(run.busy for run in runs) / len(spells),
        share=share,
        **lost,
        between=max(0.0, 1 - share - sum(lost.values())),
    )


_Spell: TypeAlias = tuple[float, float, Training]


def _spells(history: History, now: float | None) -> Iterator[_Spell]:
    for training in history.rows():
        for begin, end in training.spells:
            yield begin, end, training
        if training.status == "running" and training.begun is not None and now is not None:
            yield training.begun, max(now, training.begun), training


def _by_run(history: History, spells: Sequence[_Spell]) -> list[tuple[int, list[_Spell]]]:
    """The slots of each run, and what it trained."""
    begins = [begin for begin, _ in history.runs]
    parts: dict[int, list[_Spell]] = defaultdict(list)
    for spell in spells:
        parts[int(np.searchsorted(begins, spell[0], side="right")) - 1].append(spell)
    return [(slots, parts[i]) for i, (_, slots) in enumerate(history.runs)]


class _Run:
    """One run: its time, and the windows in which idle slots had a reason."""

    def __init__(self, study: Study, slots: int, spells: Sequence[_Spell]) -> None:
        self._slots = slots
        self._begins = np.array([s[0] for s in spells])
        self._ends = np.array([s[1] for s in spells])
        self.whole: Window = (float(self._begins.min()), float(self._ends.max()))
        handed: dict[str, float] = {}
        for begin, _, training in spells:
            handed[training.position] = min(begin, handed.get(training.position, begin))
        blocks = {t.position: t.block for _, _, t in spells}
        starts = [(blocks[position], begin) for position, begin in handed.items()]
        last = max(handed.values())
        after = [b for block, b in starts if block is not None]
        explores = any(t.stage == "explore" for _, _, t in spells)
        self.end: list[Window] = [(last, self.whole[1])]
        self.explore: list[Window] = [(self.whole[0], min([*after, last]))] if explores else []
        self.looks: list[Window] = list(_looks(study, starts))

    @property
    def time(self) -> float:
        """Slot seconds."""
        return self._slots * (self.whole[1] - self.whole[0])

    @property
    def busy(self) -> float:
        """Slot seconds in trainings."""
        return float((self._ends - self._begins).sum())

    def idle(self, windows: Sequence[Window]) -> float:
        """Slot seconds without a training in these windows."""
        found = 0.0
        for low, high in windows:
            inside = np.minimum(self._ends, high) - np.maximum(self._begins, low)
            busy = float(inside.clip(min=0.0).sum())
            found += max(0.0, self._slots * (high - low) - busy)
        return found


def _looks(study: Study, starts: Sequence[tuple[int | None, float]]) -> Iterator[Window]:
    """From the last job before each planned look to the first after it."""
    for look in study.protocol.looks:
        before = [begin for block, begin in starts if block is not None and block < look]
        after = [begin for block, begin in starts if block is not None and block >= look]
        if before and after and max(before) < min(after):
            yield max(before), min(after)
