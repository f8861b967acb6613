"""Between the protocol and an engine: which job runs next, and what becomes of its events.

The conductor asks the machine, leaves out what the ledger already holds, queues the rest as jobs,
writes every event to the ledger, gives lost jobs back (at most ATTEMPTS per training, counted from
the ledger, so across restarts), scores confirm pairs and tells the machine. Resuming is no special
case: a recorded request is asked again, must be the same, and is told from the record. (Points that TPE
proposed are the record's where the machine was given it: only their being in the space is checked.)
It starts no process and knows no engine; one thread calls it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from aim_tune.errors import ResumeError
from aim_tune.ledger import History, Training, TrainingResult, pack_bits, unpack_ints
from aim_tune.protocol import DONE, WAIT, Gate, Told
from aim_tune.protocol.gates import judge
from aim_tune.spec.request import Job, Request
from aim_tune.spec.study import Recipe, Study

ATTEMPTS = 3
"""How often one training may be started; Ctrl-C does not count."""

_LOST = f"lost {ATTEMPTS} times; at last: {{}}"

Listener = Callable[[dict[str, Any]], None]
"""Gets every record of the ledger, after it is on disk."""


class _Machine(Protocol):
    def ask(self) -> Any: ...
    def answer(self, gate: Gate, is_open: bool) -> None: ...
    def tell(self, position: str, scores: Mapping[str, Told]) -> None: ...


class _Ledger(Protocol):
    history: History

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]: ...


class Conductor:
    """Hands out jobs and takes their events; see the head of the file.

    An engine repeats: `next_job()`; run it, passing each record of the worker to `event`; then
    `job_done(job)`, or `job_lost(job, reason)` where the worker died. `labels` are the sealed test
    labels; None where the study has no confirm pairs. `allotted_steps` says what a recipe grants: a
    training that was lost too often still used up its budget.
    """

    def __init__(
        self,
        study: Study,
        machine: _Machine,
        ledger: _Ledger,
        labels: np.ndarray | None,
        listeners: Sequence[Listener] = (),
        *,
        allotted_steps: Callable[[Recipe], int] = lambda recipe: recipe.steps or 0,
    ) -> None:
        self._study = study
        self._machine = machine
        self._ledger = ledger
        self._labels = labels
        self._listeners = tuple(listeners)
        self._allotted_steps = allotted_steps
        self._ready: deque[Job] = deque()
        self._running: list[Job] = []
        self._open: dict[str, Request] = {}
        self._content: dict[str, str] = {}
        """Content hash -> first position, of explore requests."""
        self._repeats: dict[str, list[str]] = {}
        """Position -> positions that wait for its result."""
        self._finished = False

    @property
    def history(self) -> History:
        """The ledger, replayed up to now."""
        return self._ledger.history

    @property
    def finished(self) -> bool:
        """Whether all is done: nothing is left to ask, to run or to wait for."""
        return self._finished and not self._ready and not self._running

    def next_job(self) -> Any:
        """A Job to run now; WAIT while running jobs have to report first; DONE when all is done."""
        while not self._ready and not self._finished:
            request = self._machine.ask()
            if isinstance(request, Gate):
                self._pass(request)
            elif request is WAIT:
                assert self._running, "the protocol waits, but nothing is running"
                return WAIT
            elif request is DONE:
                self._finished = True
            else:
                self._take(request)
        if self._ready:
            job = self._ready.popleft()
            self._running.append(job)
            return job
        return WAIT if self._running else DONE

    def event(self, record: Mapping[str, Any]) -> None:
        """A record from a worker. What an orphan of an earlier attempt says is left out."""
        training = self.history.trainings[record["position"], record["arm"]]
        _check_code(record, self.history)
        if not training.done and record["attempt"] >= training.attempts:
            self._write(record)

    def job_done(self, job: Job) -> None:
        """The worker has ended; a job with an arm that has no result counts as lost."""
        if self._unfinished(job):
            self.job_lost(job, "the worker ended without a result")
            return
        self._running.remove(job)
        self._settle(job.request.position)

    def job_lost(self, job: Job, reason: str) -> None:
        """The worker died. Unfinished arms are queued again, or fail after ATTEMPTS attempts."""
        self._running.remove(job)
        position, arms = job.request.position, self._unfinished(job)
        if arms:
            self._charge(job, arms)
            self._write({"event": "job_lost", "position": position, "arms": arms, "reason": reason})
            spent = [a for a in arms if self._attempts(position, a) >= ATTEMPTS]
            for arm in spent:
                self._give_up(position, arm, "failed", _LOST.format(reason))
            again = tuple(a for a in arms if a not in spent)
            if again:
                self._ready.appendleft(self._job(job.request, again))
        self._settle(position)

    def _pass(self, gate: Gate) -> None:
        """Answer a gate as the ledger says, or judge it and write it down."""
        if gate.name not in self.history.gates:
            self._write(judge(self._study, self.history, gate))
        self._machine.answer(gate, self.history.gates[gate.name]["open"])

    def job_hung(self, job: Job, arm: str, reason: str) -> None:
        """The worker was ended because `arm` hung. It keeps what it reached; it would hang again, so
        it is not tried again. Its siblings are."""
        self._running.remove(job)
        position = job.request.position
        if not self._training(position, arm).done:
            self._give_up(position, arm, "timeout", reason)
        again = self._unfinished(job)
        if again:
            self._ready.appendleft(self._job(job.request, again))
        self._settle(position)

    def _take(self, request: Request) -> None:
        """Bring a request of the machine to the ledger, or recognise it there."""
        position = request.position
        source = self._duplicate_of(request)
        known = self.history.requests.get(position)
        if known is None:
            self._write(
                {
                    "event": "asked",
                    "position": position,
                    "request": request.to_dict(),
                    "content_hash": request.content_hash,
                    "reused_from": source,
                }
            )
        elif known.content_hash != request.content_hash or known.stop != request.stop:
            raise ResumeError(
                f"{position} was asked differently when this study began (then "
                f"{known.content_hash}, now {request.content_hash}): the protocol's code or a "
                "library has changed. Go on with the versions of then, or use --fork."
            )
        self._open[position] = request
        if source is not None and source in self._open:
            self._repeats.setdefault(source, []).append(position)
            return
        if source is None:
            self._queue(request)
        self._settle(position)

    def _duplicate_of(self, request: Request) -> str | None:
        """Position of an earlier explore request that asks for the very same, if there is one."""
        if request.stage != "explore":
            return None
        first = self._content.setdefault(request.content_hash, request.position)
        return None if first == request.position else first

    def _queue(self, request: Request) -> None:
        """Jobs for the arms of a request that have no result yet."""
        position = request.position
        arms = [a for a in request.arm_order() if not self._training(position, a).done]
        for arm in list(arms):
            if self._attempts(position, arm) >= ATTEMPTS:  # the driver died each time
                why = "the search was killed while it ran"
                self._give_up(position, arm, "failed", _LOST.format(why))
                arms.remove(arm)
        apart = self._study.resources.pack == "arm" and request.stage != "match"
        packs = [(a,) for a in arms] if apart else [tuple(arms)]
        self._ready.extend(self._job(request, pack) for pack in packs if pack)

    def _job(self, request: Request, arms: Iterable[str]) -> Job:
        trainings = {arm: self._training(request.position, arm) for arm in arms}
        return Job(
            request=request,
            arms=tuple(trainings),
            attempts={arm: t.attempts + 1 for arm, t in trainings.items()},
        )

    def _charge(self, job: Job, arms: Sequence[str]) -> None:
        """Make sure that a lost job costs an attempt, even if its worker died before it could speak."""
        position, first = job.request.position, arms[0]
        if all(self._training(position, a).attempts < job.attempts[a] for a in arms):
            self._write(
                {
                    "event": "training_started",
                    "position": position,
                    "arm": first,
                    "attempt": job.attempts[first],
                    "node": "",
                    "device": "",
                    "pid": None,
                }
            )

    def _give_up(self, position: str, arm: str, status: str, detail: str) -> None:
        """End a training from outside, with what it has reached."""
        training = self._training(position, arm)
        last = training.curve[-1] if training.curve else None
        granted = self.history.requests[position].steps.get(arm)
        recipe = self._study.recipe_of(arm, training.point.shared, granted)
        result = TrainingResult(
            arm=arm,
            status=status,
            detail=detail,
            val_accuracy=last.val_accuracy if last and status == "timeout" else None,
            steps=last.step if last else 0,
            allotted_steps=self._allotted_steps(recipe),
            device=training.devices[-1] if training.devices else "",
            node=training.node,
        )
        self._write(
            {
                "event": "training_done",
                "position": position,
                "arm": arm,
                "attempt": training.attempts,
                "result": result.to_dict(),
            }
        )

    def _settle(self, position: str) -> None:
        """Once all arms have a result: score, close the request, tell the machine; then its repeats."""
        trainings = self.history.of(position)
        if position not in self._open or not all(t.done for t in trainings):
            return
        if position not in self.history.done:
            test = self._look(position, trainings) if self._open[position].test else {}
            self._write({"event": "request_done", "position": position, "test": test})
        del self._open[position]
        self._machine.tell(position, {t.arm: Told.of(t) for t in trainings})
        for repeat in self._repeats.pop(position, ()):
            self._settle(repeat)

    def _look(self, position: str, trainings: Sequence[Training]) -> dict[str, dict[str, Any]]:
        """Score the predictions of a confirm pair. The look is on record before labels are used."""
        assert self._labels is not None, "confirm pairs need the sealed labels"
        found = {t.arm: t.result.predictions for t in trainings if t.result}
        predictions = {arm: unpack_ints(text) for arm, text in found.items() if text}
        looked = any(look["position"] == position for look in self.history.looks)
        if predictions and not looked:  # a driver killed just after its look does not look twice
            look = {"arms": list(predictions), "examples": len(self._labels)}
            self._write({"event": "test_look", "position": position, **look})
        return {arm: _grade(classes, self._labels) for arm, classes in predictions.items()}

    def _unfinished(self, job: Job) -> list[str]:
        return [a for a in job.arms if not self._training(job.request.position, a).done]

    def _attempts(self, position: str, arm: str) -> int:
        """Attempts that count."""
        training = self._training(position, arm)
        return training.attempts - training.spared

    def _training(self, position: str, arm: str) -> Training:
        return self.history.trainings[position, arm]

    def _write(self, event: Mapping[str, Any]) -> None:
        record = self._ledger.append(event)
        for listener in self._listeners:
            listener(record)


def _check_code(record: Mapping[str, Any], history: History) -> None:
    """Raise ResumeError where a worker runs other code than the study was declared with."""
    ours = (history.declared or {}).get("code_hash")
    if ours and record.get("code", ours) != ours:
        raise ResumeError(
            f"the code of aim_tune on {record['node']} is another than this study began with "
            f"({record['code']} there, {ours} here): results would mix. Was a file changed while the "
            "search ran? Undo that, or copy the code to all nodes (`ray up -y FILE`), and run the same "
            "command again: what is recorded stays."
        )


def _grade(classes: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    assert classes.shape == labels.shape, f"{classes.shape} predictions, {labels.shape} labels"
    correct = classes == labels
    return {"accuracy": float(correct.mean()), "correct": pack_bits(correct)}
