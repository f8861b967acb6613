"""A small study, a ledger in memory and a simulated trial body for the tests of the engines."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from aim_tune.engine.conductor import Conductor
from aim_tune.ledger import History, TrainingResult, pack_ints
from aim_tune.protocol import Machine
from aim_tune.spec.request import Job
from aim_tune.spec.space import Choice, Uniform
from aim_tune.spec.study import Addon, Component, Explore, Protocol, Recipe, Resources, Study
from aim_tune.spec.values import derive_seed

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
LABELS = np.arange(20) % 10


class MemoryLedger:
    """A ledger without a file."""

    def __init__(self, history: History | None = None) -> None:
        self.history = history or History()
        self.records: list[dict[str, Any]] = []

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        record = {"time": time.time(), **event}
        self.records.append(record)
        self.history.apply(record)
        return record


def make_study(*, pack: str = "twin", trials: int = 4, blocks: int = 2, twins: int = 2) -> Study:
    return Study(
        name="simulated",
        backbone=Component(name="mlp"),
        data=Component(name="digits"),
        arms=("baseline", "aim", "frozen"),
        recipe=Recipe(steps=10),
        shared={"lr": Uniform(1e-3, 1e-1, log=True)},
        addon=Addon(name="memory", space={"update_width": Choice((8, 16))}),
        protocol=Protocol(
            explore=Explore(trials=trials, lag=2), blocks=blocks, twins=twins, confirm=1, seed=3
        ),
        resources=Resources(pack=pack),
    )


def simulated(
    job: Job, study: Study, *, store_root: str | None, report: Callable[[dict[str, Any]], None]
) -> None:
    """Trains nothing: the score follows from point, streams and arm, as a real one would."""
    for arm in job.arms:
        head = {"position": job.request.position, "arm": arm, "attempt": job.attempts[arm]}
        report({"event": "training_started", **head, "node": "n", "device": "d", "pid": 1})
        seed = derive_seed(job.request.arms[arm].to_dict(), dict(job.request.streams), arm)
        generator = random.Random(seed)
        time.sleep(generator.random() * 0.02)
        score = generator.random()
        measure = {"step": 10, "epoch": 1.0, "train_loss": 1.0, "val_loss": 1.0}
        report(
            {"event": "epoch", **head, **measure, "val_accuracy": score, "lr": 0.1, "seconds": 1.0}
        )
        classes = pack_ints([generator.randrange(10) for _ in range(20)])
        result = TrainingResult(
            arm=arm,
            status="ok",
            steps=10,
            allotted_steps=10,
            val_accuracy=score,
            predictions=classes if job.request.test else None,
        )
        report({"event": "training_done", **head, "result": result.to_dict()})


def failing_once(flag: Path, how: str) -> Callable[..., None]:
    """`simulated`, but the first time the arm `aim` of twin 0 is reached, it raises or is killed."""

    def body(job: Job, study: Study, **kwargs: Any) -> None:
        for arm in job.arms:
            if arm == "aim" and job.request.position == "block/0/twin/0" and not flag.exists():
                flag.touch()
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise RuntimeError("planted")
            simulated(job.only([arm]), study, **kwargs)

    return body


def broken_at(position: str) -> Callable[..., None]:
    """`simulated`, but one request always raises."""

    def body(job: Job, study: Study, **kwargs: Any) -> None:
        if job.request.position == position:
            raise RuntimeError("planted")
        simulated(job, study, **kwargs)

    return body


def sleeping(job: Job, study: Study, **kwargs: Any) -> None:
    """Hangs."""
    time.sleep(60)


def outcome(history: History) -> dict[tuple[str, str], Any]:
    """All that must not depend on engine, slots or packing."""
    return {
        key: (t.point.to_dict(), dict(t.streams), t.score, t.test_accuracy, t.reused_from)
        for key, t in sorted(history.trainings.items())
    }


@pytest.fixture
def lab() -> Any:
    """The helpers above, and `conduct(study)` to make a conductor with its ledger."""

    class Lab:
        labels = LABELS
        study = staticmethod(make_study)
        simulated = staticmethod(simulated)
        failing_once = staticmethod(failing_once)
        broken_at = staticmethod(broken_at)
        sleeping = staticmethod(sleeping)
        outcome = staticmethod(outcome)
        Ledger = MemoryLedger
        replace = staticmethod(replace)

        @staticmethod
        def conduct(study: Study, ledger: Any = None, **kwargs: Any) -> tuple[Conductor, Any]:
            ledger = ledger or MemoryLedger()
            machine = Machine(study, recorded=ledger.history.requests.get)
            return Conductor(study, machine, ledger, LABELS, **kwargs), ledger

    return Lab
