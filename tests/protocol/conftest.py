"""A small study and simulated trainings: a score that is a pure function of (arm, point, streams)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from aim_tune.ledger import History, TrainingResult
from aim_tune.protocol import DONE, WAIT, Machine
from aim_tune.spec.request import Point, Request
from aim_tune.spec.space import Choice, Domain, Fixed, Uniform
from aim_tune.spec.study import Addon, Component, Explore, Protocol, Recipe, Study
from aim_tune.spec.values import canonical, derive_seed

SHARED: dict[str, Domain] = {"lr": Uniform(1e-3, 1e-1, log=True), "weight_decay": Uniform(0.0, 0.1)}
ADDON: dict[str, Domain] = {
    "memory_shape": Choice(((4, 4, 16), (4, 4, 32), (2, 2, 64))),
    "update_width": Choice((8, 16, 32)),
    "write": Fixed("sample"),
}
BONUS = {"baseline": 0.0, "aim": 0.02, "frozen": 0.01}


def study_of(
    *,
    arms: tuple[str, ...] = ("baseline", "aim", "frozen"),
    explore: int = 6,
    lag: int = 4,
    blocks: int = 3,
    twins: int = 4,
    confirm: int = 2,
    seed: int = 0,
    shared: Mapping[str, Domain] = SHARED,
    addon: Mapping[str, Domain] | None = ADDON,
) -> Study:
    return Study(
        name="simulated",
        backbone=Component(name="resnet8", settings={"width": 8}),
        data=Component(name="digits", settings={"train_images": 200, "val_images": 300}),
        arms=arms,
        recipe=Recipe(steps=100),
        shared=shared,
        addon=None if addon is None else Addon(name="memory", space=addon),
        protocol=Protocol(
            explore=Explore(trials=explore, lag=lag),
            blocks=blocks,
            twins=twins,
            confirm=confirm,
            seed=seed,
        ),
    )


def score(arm: str, point: Point, streams: Mapping[str, int]) -> float:
    """Best at lr 0.02 and, with the add-on, at wide updates; noise sd 0.01 from the streams."""
    noise = np.random.default_rng(
        derive_seed(arm, point.to_dict(), dict(sorted(streams.items())))
    ).normal(0.0, 0.01)
    distance = math.log10(point.shared["lr"] / 0.02) if "lr" in point.shared else 0.0
    width = point.addon.get("update_width", 0) / 1000
    return 0.8 + BONUS[arm] + width - 0.1 * distance**2 + float(noise)


def train(request: Request) -> dict[str, float | None]:
    """Scores of a request; one training in twenty fails."""
    scores: dict[str, float | None] = {}
    for arm, point in request.arms.items():
        lost = derive_seed("lost", arm, request.content_hash) % 20 == 0
        scores[arm] = None if lost else score(arm, point, request.streams)
    return scores


def run_study(
    machine: Machine,
    *,
    slots: int = 1,
    seed: int = 0,
    trainer: Callable[[Request], dict[str, float | None]] = train,
    stop_after: int | None = None,
) -> dict[str, tuple[Request, dict[str, float | None]]]:
    """Run a study in `slots` slots, finishing in random order: position -> (request, scores told)."""
    chance, running, told = random.Random(seed), [], {}
    while stop_after is None or len(told) < stop_after:
        while len(running) < slots and (answer := machine.ask()) not in (WAIT, DONE):
            running.append(answer)
        if not running:
            assert machine.ask() is DONE
            break
        request = running.pop(chance.randrange(len(running)))
        told[request.position] = (request, trainer(request))
        machine.tell(request.position, told[request.position][1])
    return told


def requests_text(told: Mapping[str, tuple[Request, Any]]) -> str:
    """All requests as one text, by position."""
    return canonical({position: request.to_dict() for position, (request, _) in told.items()})


@pytest.fixture
def sim() -> Any:
    """The helpers above under one name (test modules cannot import a conftest)."""

    class Sim:
        shared = SHARED
        addon = ADDON
        study_of = staticmethod(study_of)
        score = staticmethod(score)
        train = staticmethod(train)
        run_study = staticmethod(run_study)
        requests_text = staticmethod(requests_text)

    return Sim


def records(study: Study, told: Mapping[str, Any], *, test: bool = True) -> Any:
    """Ledger records of a simulated study; test accuracy is the validation accuracy less 0.05."""
    yield {
        "event": "declared",
        "study": study.to_dict(),
        "study_hash": study.study_hash,
        "code_hash": "c0de",
        "data_digest": "d1ce",
        "versions": {"torch": "2.15.0"},
    }
    seen: dict[str, str] = {}
    for position, (request, scores) in told.items():
        source = seen.setdefault(request.content_hash, position)
        yield {
            "event": "asked",
            "position": position,
            "request": request.to_dict(),
            "content_hash": request.content_hash,
            "reused_from": None if source == position else source,
        }
        if source == position:
            for arm, score in scores.items():
                yield from _trained(position, arm, score)
        graded = {a: s for a, s in scores.items() if s is not None and request.test and test}
        marks = {a: {"accuracy": s - 0.05, "correct": None} for a, s in graded.items()}
        yield {"event": "request_done", "position": position, "test": marks}


def _trained(position: str, arm: str, score: float | None) -> Any:
    where = {"position": position, "arm": arm, "attempt": 1}
    yield {"event": "training_started", **where}
    if score is not None:
        for step in (50, 100):
            yield {
                "event": "epoch", **where, "step": step, "epoch": step / 7, "train_loss": 1.0,
                "val_loss": 1.0, "val_accuracy": score * step / 100, "lr": 0.01, "seconds": 1.0,
            }  # fmt: skip
    result = TrainingResult(
        arm=arm,
        status="failed" if score is None else "ok",
        val_accuracy=score,
        allotted_steps=100,
        weights_sha256="ab",
        device="cpu: test",
    )
    yield {"event": "training_done", **where, "result": result.to_dict()}


@pytest.fixture
def history_of(sim: Any) -> Callable[..., History]:
    """Study -> history of its simulated run, or of the first `stop_after` requests."""

    def make(
        study: Study,
        *,
        stop_after: int | None = None,
        trainer: Callable[[Request], dict[str, float | None]] = train,
        test: bool = True,
    ) -> History:
        told = run_study(Machine(study), stop_after=stop_after, trainer=trainer)
        history = History()
        for record in records(study, told, test=test):
            history.apply(json.loads(json.dumps(record)))
        return history

    return make
