"""Simulated studies as ledger events: the real records, invented scores. For self-tests and examples.

The A/A and power checks of the protocol, the report's tests and its pictures in the documentation
run the real code on these. No training, no clock: times are made up and a seed gives one history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aim_tune.ledger import History, TrainingResult, pack_bits
from aim_tune.spec.request import STREAMS, Point, Request
from aim_tune.spec.space import Choice, Domain, Fixed, IntUniform, Uniform
from aim_tune.spec.study import BASELINE, Addon, Component, Explore, Protocol, Recipe, Study
from aim_tune.spec.values import derive_seed

START = 1_700_000_000.0
"""Time of the first event, seconds since 1970."""
DEVICE = "cpu: simulated"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one simulated training ends."""

    val_accuracy: float | None
    bits: NDArray[np.bool_] | None = None
    """Confirm pairs: correctness per test example; None: no test score."""
    status: str = "ok"
    steps: int | None = None
    """Steps done; None: all."""


Play = Callable[[Request, str], Outcome]
"""(request, arm) -> how that training ends."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A world with known true effects. Accuracies and sd in points.

    accuracy = level - steepness (log10 lr - best)^2 + effect + split noise + seed noise; a test example
    is right where its own difficulty allows.
    """

    effects: Mapping[str, float]
    """True effect per arm; 0 if not named."""
    level: float = 80.0
    steepness: float = 6.0
    best_lr: float = 1e-2
    seed_sd: float = 0.5
    split_sd: float = 1.0
    test_examples: int = 400
    val_examples: int = 300
    seed: int = 0

    def play(self, request: Request, arm: str) -> Outcome:
        """One training of this world."""
        rng = np.random.default_rng(derive_seed(self.seed, request.position, arm))
        split = np.random.default_rng(derive_seed(self.seed, "split", request.block))
        rate = float(request.arms[arm].shared.get("lr", self.best_lr))
        loss = self.steepness * (np.log10(rate) - np.log10(self.best_lr)) ** 2
        mean = self.level - loss + self.effects.get(arm, 0.0) + split.normal(0, self.split_sd)
        chance = np.clip((mean + rng.normal(0, self.seed_sd)) / 100, 0.02, 0.98)
        val = rng.binomial(self.val_examples, chance) / self.val_examples
        return Outcome(val_accuracy=float(val), bits=self._bits(chance, rng))

    def _bits(self, chance: float, rng: np.random.Generator) -> NDArray[np.bool_]:
        examples = np.random.default_rng(derive_seed(self.seed, "examples"))
        ease = examples.normal(0, 1, self.test_examples)
        scores = ease + rng.normal(0, 0.4, self.test_examples)
        return scores > np.quantile(scores, 1 - chance)


def simulated_history(study: Study, play: Play, *, requests: int | None = None) -> History:
    """The history of `study` (its first `requests` requests) in the given world."""
    history = History()
    for record in simulated_events(study, play, requests=requests):
        history.apply(record)
    return history


def simulated_events(
    study: Study, play: Play, *, requests: int | None = None
) -> Iterator[dict[str, Any]]:
    """Every ledger record of such a study, in order. Explore points are drawn at random."""
    best: dict[int, dict[str, tuple[float, Point]]] = {}
    clock = START
    yield {
        "event": "declared", "time": clock, "study": study.to_dict(),
        "study_hash": study.study_hash, "code_hash": "0123456789abcdef", "code": {},
        "data_digest": "fedcba9876543210", "versions": {"aim_tune": "simulated"},
        "node": "simulated",
    }  # fmt: skip
    for turn, position in enumerate(_positions(study)[:requests]):
        request = _request(study, position, turn, best)
        for record in _run(study, request, play, best):
            clock += 1.0
            yield {**record, "time": clock}


def _positions(study: Study) -> list[str]:
    plan = study.protocol
    explore = [f"explore/{i}" for i in range(plan.explore.requests)]
    stages = [f"twin/{i}" for i in range(plan.twins)] + [
        f"confirm/{i}" for i in range(plan.confirm)
    ]
    blocks = [f"block/{b}/{stage}" for b in range(plan.blocks) for stage in stages]
    return explore + blocks + [f"export/{plan.blocks}/{i}" for i in range(plan.export_seeds)]


def _request(
    study: Study, position: str, turn: int, best: dict[int, dict[str, tuple[float, Point]]]
) -> Request:
    seed = study.protocol.seed
    rng = np.random.default_rng(derive_seed(seed, position))
    shared = {k: _draw(d, rng) for k, d in study.shared.items()}
    addon = {k: _draw(d, rng) for k, d in study.addon.space.items()} if study.addon else {}
    arms = {a: Point(shared=shared, addon=addon if a != BASELINE else {}) for a in study.arms}
    test = "/confirm/" in position
    if test:
        chosen = best[int(position.split("/")[1])]
        arms = {a: chosen[a][1] if a in chosen else arms[a] for a in study.arms}
    streams = {name: derive_seed(seed, position, name) for name in STREAMS}
    return Request(position=position, arms=arms, streams=streams, turn=turn, test=test)


def _draw(domain: Domain, rng: np.random.Generator) -> Any:
    match domain:
        case Fixed(value):
            return value
        case Choice(options):
            return options[int(rng.integers(len(options)))]
        case Uniform(low, high, log):
            return float(
                np.exp(rng.uniform(np.log(low), np.log(high))) if log else rng.uniform(low, high)
            )
        case IntUniform(low, high):
            return int(rng.integers(low, high + 1))


def _run(
    study: Study,
    request: Request,
    play: Play,
    best: dict[int, dict[str, tuple[float, Point]]],
) -> Iterator[dict[str, Any]]:
    """The records of one request."""
    where = {"position": request.position}
    yield {
        "event": "asked", **where, "request": request.to_dict(),
        "content_hash": request.content_hash, "reused_from": None,
    }  # fmt: skip
    outcomes = {arm: play(request, arm) for arm in request.arm_order()}
    for arm, outcome in outcomes.items():
        yield from _train(study, request.position, arm, outcome)
        if request.stage == "twin" and outcome.val_accuracy is not None:
            chosen = best.setdefault(request.block or 0, {})
            if arm not in chosen or outcome.val_accuracy > chosen[arm][0]:
                chosen[arm] = (outcome.val_accuracy, request.arms[arm])
    tests = {a: o.bits for a, o in outcomes.items() if request.test and o.bits is not None}
    if tests:
        examples = len(next(iter(tests.values())))
        yield {"event": "test_look", **where, "arms": list(tests), "examples": examples}
    test = {a: {"accuracy": float(b.mean()), "correct": pack_bits(b)} for a, b in tests.items()}
    yield {"event": "request_done", **where, "test": test}


def _train(study: Study, position: str, arm: str, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The records of one training: a curve that saturates at the outcome."""
    where = {"position": position, "arm": arm, "attempt": 1}
    allotted = study.recipe.steps or 100
    steps = allotted if outcome.steps is None else outcome.steps
    yield {"event": "training_started", **where, "node": "simulated", "device": DEVICE, "pid": 1}
    passes = study.recipe.evaluations if outcome.val_accuracy is not None else 0
    for i in range(1, passes + 1):
        share = (1 - np.exp(-4 * i / passes)) / (1 - np.exp(-4))
        yield {
            "event": "epoch", **where, "step": steps * i // passes, "epoch": i / 2,
            "train_loss": 2.3 * (1 - share) + 0.1, "val_loss": 2.3 * (1 - share) + 0.3,
            "val_accuracy": float(share * (outcome.val_accuracy or 0.0)), "lr": 1e-3,
            "seconds": i * 0.2,
        }  # fmt: skip
    result = TrainingResult(
        arm=arm, status=outcome.status, steps=steps, allotted_steps=allotted,
        val_accuracy=outcome.val_accuracy, val_best=outcome.val_accuracy, seconds=2.0,
        step_ms=6.0 if arm == BASELINE else 6.6, parameters=20_000 if arm == BASELINE else 23_000,
        device=DEVICE, node="simulated",
    )  # fmt: skip
    yield {"event": "training_done", **where, "result": result.to_dict()}


def example_study(
    *,
    blocks: int = 10,
    twins: int = 5,
    confirm: int = 2,
    explore: int = 0,
    arms: tuple[str, ...] = (BASELINE, "aim", "frozen"),
    rope_points: float = 0.5,
    seed: int = 0,
) -> Study:
    """A small study to simulate: the quick start's question with the given protocol."""
    return Study(
        name="example",
        backbone=Component(name="resnet8", settings={"width": 8}),
        data=Component(name="digits", settings={"image_size": 16}),
        arms=arms,
        recipe=Recipe(steps=300),
        shared={"lr": Uniform(1e-3, 1e-1, log=True), "weight_decay": Uniform(1e-5, 1e-2, log=True)},
        addon=Addon(
            name="memory",
            space={
                "memory_shape": Choice(((4, 4, 16), (2, 2, 64))),
                "activation": Choice(("sigmoid", "relu", "tanh")),
            },
        ),
        protocol=Protocol(
            explore=Explore(trials=explore),
            blocks=blocks,
            twins=twins,
            confirm=confirm,
            rope_points=rope_points,
            seed=seed,
        ),
    )
