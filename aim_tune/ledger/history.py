"""A replayed ledger: what is known after so many records. Pure; `file` reads and writes."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aim_tune.errors import LedgerError
from aim_tune.ledger.records import Measure, Training, TrainingResult
from aim_tune.spec.request import Request


@dataclass(kw_only=True)
class History:
    """A replayed ledger."""

    declared: dict[str, Any] | None = None
    requests: dict[str, Request] = field(default_factory=dict)
    """Position -> request, in the order asked."""
    trainings: dict[tuple[str, str], Training] = field(default_factory=dict)
    """(position, arm) -> training."""
    done: set[str] = field(default_factory=set)
    """Positions of finished requests."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    """All test_look records."""
    blocks: int | None = None
    """Number of blocks after the last `extended` record; None: as declared."""
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> gate record: whether the study was to go on there."""
    interrupted: bool = False
    """Whether the last run was stopped by the user and has not been resumed."""
    verdict: dict[str, Any] | None = None
    runs: list[tuple[float, int]] = field(default_factory=list)
    """(begin, slots) of every run that trained."""
    events: int = 0
    last_time: float | None = None
    """When the last record was written, seconds since 1970."""
    dropped_bytes: int = 0
    """Length of an incomplete last line that was left out when reading."""
    _repeats: dict[str, list[str]] = field(default_factory=dict, repr=False)
    """Position -> positions that reuse its results."""

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take one more record into account. Unknown events (of a later version) are only counted."""
        self.events += 1
        handler: Callable[[Mapping[str, Any]], None] | None
        handler = getattr(self, f"_on_{record['event']}", None)
        if handler is not None:
            handler(record)
        self.last_time = record.get("time", self.last_time)

    def rows(self, stage: str | None = None, arm: str | None = None) -> list[Training]:
        """The tidy table, optionally of one stage or arm, in the order asked."""
        return [
            t for t in self.trainings.values() if stage in (None, t.stage) and arm in (None, t.arm)
        ]

    def of(self, position: str) -> list[Training]:
        """The trainings of one request, in the order of its arms."""
        return [self.trainings[position, arm] for arm in self.requests[position].arms]

    @property
    def stopped(self) -> dict[str, Any] | None:
        """The gate that ended the blocks early: a planned look that decided, or the budget."""
        closed = (g for n, g in self.gates.items() if not g["open"] and not n.startswith("attr"))
        return next(closed, None)

    def _on_declared(self, record: Mapping[str, Any]) -> None:
        self.declared = dict(record)

    def _on_resumed(self, record: Mapping[str, Any]) -> None:
        self.interrupted = False
        for training in self._running():  # nobody trains them now
            _end_spell(training, self.last_time)
            training.status = "asked"

    def _on_opened(self, record: Mapping[str, Any]) -> None:
        self.runs.append((record.get("time") or 0.0, record["slots"]))

    def _on_interrupted(self, record: Mapping[str, Any]) -> None:
        self.interrupted = True
        for training in self._running():
            _end_spell(training, record.get("time"))
            training.status = "asked"
            training.spared += 1

    def _on_extended(self, record: Mapping[str, Any]) -> None:
        self.blocks = record["blocks"]

    def _on_asked(self, record: Mapping[str, Any]) -> None:
        request = Request.from_dict(record["request"])
        if request.position in self.requests:
            return
        self.requests[request.position] = request
        source = record.get("reused_from")
        for arm, point in request.arms.items():
            self.trainings[request.position, arm] = Training(
                position=request.position,
                stage=request.stage,
                block=request.block,
                index=int(request.position.rpartition("/")[2]),
                arm=arm,
                point=point,
                streams=request.streams,
                reused_from=source,
            )
        if source is not None:
            self._repeats.setdefault(source, []).append(request.position)
            self._share(source, request.position)

    def _on_training_started(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if training.done or record["attempt"] < training.attempts:
            return
        training.status = "running"
        training.attempts = record["attempt"]
        training.begun, training.node = record.get("time"), record.get("node") or ""
        device = record.get("device") or ""
        training.devices += (device,) if device not in ("", *training.devices) else ()
        if training.started is None:
            training.started = record.get("time")

    def _on_epoch(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if record["attempt"] < training.attempts:  # an orphan of an earlier attempt
            return
        measure, curve = Measure.from_dict(record), training.curve
        place = bisect.bisect_left(curve, measure.step, key=lambda m: m.step)
        same = place < len(curve) and curve[place].step == measure.step
        curve[place : place + same] = [measure]

    def _on_training_done(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if training.done:  # an orphan of an earlier attempt
            return
        training.attempts = max(training.attempts, record["attempt"])
        _end_spell(training, record.get("time"))
        training.result = TrainingResult.from_dict(record["result"])
        training.status = training.result.status
        training.finished = record.get("time")
        for repeat in self._repeats.get(training.position, ()):
            self._share(training.position, repeat)

    def _on_job_lost(self, record: Mapping[str, Any]) -> None:
        for arm in record["arms"]:
            training = self._training({**record, "arm": arm})
            if not training.done:
                _end_spell(training, record.get("time"))
                training.status = "asked"

    def _on_test_look(self, record: Mapping[str, Any]) -> None:
        self.looks.append(dict(record))

    def _on_request_done(self, record: Mapping[str, Any]) -> None:
        self.done.add(record["position"])
        for arm, test in record.get("test", {}).items():
            training = self._training({**record, "arm": arm})
            training.test_accuracy = test["accuracy"]
            training.correct = test["correct"]

    def _on_gate(self, record: Mapping[str, Any]) -> None:
        self.gates[record["gate"]] = dict(record)

    def _on_verdict(self, record: Mapping[str, Any]) -> None:
        self.verdict = dict(record["verdict"])

    def _training(self, record: Mapping[str, Any]) -> Training:
        key = (record["position"], record["arm"])
        if key not in self.trainings:
            raise LedgerError(
                f"event {record['event']!r} speaks of {key[0]}, arm {key[1]}, which was never asked"
            )
        return self.trainings[key]

    def _running(self) -> Iterator[Training]:
        return (t for t in self.trainings.values() if t.status == "running")

    def _share(self, source: str, repeat: str) -> None:
        """Give a repeated request what is known of its source by now."""
        for arm in self.requests[repeat].arms:
            known = self.trainings.get((source, arm))
            if known is not None and known.done:
                mine = self.trainings[repeat, arm]
                mine.result, mine.status, mine.curve = known.result, known.status, known.curve
                mine.devices = known.devices


def _end_spell(training: Training, time: float | None) -> None:
    """Note how long the attempt that runs, if one does, took a slot."""
    if training.status == "running" and training.begun is not None and time is not None:
        training.spells.append((training.begun, time))
