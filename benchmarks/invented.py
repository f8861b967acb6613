"""Invented trainings for self_test.py: a world with known truth, and whole studies run in it.

Each study runs the real Machine (requests, explore, gates, the choice of each arm's best), real ledger
records applied to a real History, and `decide`. Only the training is invented: accuracy = level + split
- C |z - z*|^2 + effect + config-by-split noise, in points; z = lr, weight decay and label smoothing, each
scaled to [0, 1]. Validation adds seed noise (sd 0.5). A confirm run draws every test example: 2,000
examples whose chances are Beta distributed around 90 %: the sd between two runs is 0.5 points as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aim_tune.ledger import History, TrainingResult, pack_bits
from aim_tune.protocol import DONE, Gate, Machine
from aim_tune.protocol.gates import judge
from aim_tune.spec.request import Point, Request
from aim_tune.spec.space import Choice, Domain, Fixed, Uniform
from aim_tune.spec.study import BASELINE, Addon, Component, Explore, Protocol, Recipe, Study
from aim_tune.stats import Verdict, decide
from aim_tune.stats.edges import share_of_range

MEAN, STEEPNESS = 0.9, 12.0
"""Accuracy at which a confirm run's sd is SEED_SD; C in points."""
LEVEL = 91.2
"""At the optimum, points: tuned arms then lie around MEAN."""
SEED_SD, SPLIT_SD, CONFIG_SD = 0.5, 0.5, 0.15
EXAMPLES = 2000
BETA = (MEAN * 1.25, (1 - MEAN) * 1.25)
"""Chances of the test examples: mean 0.9, E[p (1 - p)] = 0.05, so a run's sd is 0.5 points."""
POOL, DRAWN = 1000, 200
"""Examples outside the test set, and how many of them a block trains on (as the digits studies do)."""
STEPS = 100
SHORT_LOSS, SHORT_SHIFT = 3.0, 0.1
"""A shortened training: points lost, and how far its best settings lie from those of a whole one."""
SPACE: Mapping[str, Uniform] = {
    "lr": Uniform(1e-3, 1e-1, log=True),
    "weight_decay": Uniform(0.0, 0.1),
    "label_smoothing": Uniform(0.0, 0.2),
}
DESIGNS: Mapping[str, Domain] = {
    "memory_shape": Choice(((4, 4, 16), (4, 4, 32), (2, 2, 64))),
    "update_width": Choice((8, 16, 32)),
    "activation": Choice(("sigmoid", "relu", "tanh")),
}
"""27 designs of the add-on, none of which has any effect."""
DEFAULT, QUICK = (10, 5, 2), (6, 4, 1)
"""Plans: blocks, twins, confirm pairs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world and the plan it is studied with."""

    about: str
    null: bool = True
    """Whether false verdicts are counted against the promise. What is false: see self_test.wrong."""
    plan: tuple[int, int, int] = DEFAULT
    arms: tuple[str, ...] = (BASELINE, "aim")
    explore: int = 0
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the protocol."""
    narrow: bool = False
    """Whether blocks draw only from where some arm was good in explore."""
    effects: Mapping[str, float] = field(default_factory=dict)
    """True effect per arm, points; 0 if not named."""
    best: Mapping[str, float] = field(default_factory=dict)
    """Place of an arm's optimum on every scaled axis; 0.5 if not named."""
    axes: tuple[str, ...] = tuple(SPACE)
    """Settings that matter."""
    steepness: Mapping[str, float] = field(default_factory=dict)
    diverging: float = 0.0
    """Share of trainings of every arm that diverge and keep a score 4 points lower."""
    own_examples: float = 0.0
    """Share of test examples whose chances an arm does not share with the others."""
    pool_sd: float = 0.0
    """How much the gap between the arms varies from one fresh training set of DRAWN examples to another,
    points; blocks draw theirs from one pool."""
    extend: tuple[int, ...] = ()
    """After an open end: so many blocks in all, and so on until one decides."""
    peek: bool = False
    """Whether the interim verdict is read after every block, and believed as soon as it decides."""

    def study(self, seed: int) -> Study:
        """The declared study number `seed`."""
        blocks, twins, confirm = self.plan
        space = DESIGNS if self.explore else {k: Fixed(d.options[0]) for k, d in DESIGNS.items()}
        return Study(
            name="self_test",
            backbone=Component(name="resnet8"),
            data=Component(name="digits"),
            arms=self.arms,
            recipe=Recipe(steps=STEPS),
            shared=SPACE,
            addon=Addon(name="memory", space=space),
            protocol=Protocol(
                explore=Explore(trials=self.explore, narrow=self.narrow),
                blocks=blocks,
                twins=twins,
                confirm=confirm,
                seed=seed,
                **self.protocol,
            ),
        )


class World:
    """The invented trainings of one study."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.rng = np.random.default_rng([seed, 20])
        shared = self.rng.beta(*BETA, EXAMPLES)
        own = self.rng.random(EXAMPLES) < case.own_examples
        self.chances = {
            arm: np.where(own, self.rng.beta(*BETA, EXAMPLES), shared) if own.any() else shared
            for arm in case.arms
        }
        self.levels: dict[int | None, float] = {}
        self.gaps: dict[int | None, float] = {}
        self.luck: dict[tuple[int | None, str], float] = {}

    @cached_property
    def pool(self) -> NDArray[np.float64]:
        """What each example of the pool adds to the gap between aim and the others, if trained on."""
        return self.rng.normal(0, self.case.pool_sd * DRAWN**0.5, POOL)

    @property
    def truth(self) -> float:
        """The true effect of aim, for networks trained on examples of this pool."""
        pool = float(self.pool.mean()) if self.case.pool_sd else 0.0
        return self.case.effects.get("aim", 0.0) + pool

    def gap(self, block: int | None) -> float:
        """How much a block's training examples favor aim."""
        if not self.case.pool_sd:
            return 0.0
        if block not in self.gaps:
            drawn = self.rng.choice(POOL, DRAWN, replace=False)
            self.gaps[block] = float(self.pool[drawn].mean())
        return self.gaps[block]

    def level(self, request: Request, arm: str) -> float:
        """True accuracy of an arm's point on the split of its block, points."""
        case, point = self.case, request.arms[arm]
        if request.block not in self.levels:
            self.levels[request.block] = LEVEL + self.rng.normal(0, SPLIT_SD)
        short = request.steps.get(arm, STEPS) < STEPS
        best = case.best.get(arm, 0.5) + short * SHORT_SHIFT
        loss = case.steepness.get(arm, STEEPNESS) * distance(point, case.axes, best)
        gain = case.effects.get(arm, 0.0) + (self.gap(request.block) if arm == "aim" else 0.0)
        return self.levels[request.block] - loss + gain - short * SHORT_LOSS

    def train(self, request: Request, arm: str) -> tuple[str, float, NDArray[np.bool_] | None]:
        """Status, validation accuracy, and correctness per test example where it is asked."""
        level = self.level(request, arm)
        diverged = self.rng.random() < self.case.diverging
        level -= 4.0 * diverged
        val = level + self.rng.normal(0, np.hypot(SEED_SD, CONFIG_SD))
        status = "diverged" if diverged else "ok"
        return status, min(1.0, val / 100), self.test(request, arm, level) if request.test else None

    def test(self, request: Request, arm: str, level: float) -> NDArray[np.bool_]:
        """Every test example drawn, the chances scaled so that their mean is the level."""
        key = (request.block, arm)  # a block's choice meets the same test set in all confirm runs
        if key not in self.luck:
            self.luck[key] = self.rng.normal(0, CONFIG_SD)
        wanted, chances = min(1.0, (level + self.luck[key]) / 100), self.chances[arm]
        scaled = (
            chances * (wanted / MEAN)
            if wanted < MEAN
            else 1 - (1 - chances) * ((1 - wanted) / (1 - MEAN))
        )
        return self.rng.random(EXAMPLES, dtype=np.float32) < scaled


def distance(point: Point, axes: Sequence[str], best: float) -> float:
    """Squared distance of a point's shared settings from the optimum, axes scaled to [0, 1]."""
    return sum((share_of_range(SPACE[name], point.shared[name]) - best) ** 2 for name in axes)


def judgments(study: Study, world: World) -> Iterator[tuple[History, Verdict]]:
    """Every verdict that somebody reads: after each block where they peek, at the end, and after each
    extension. The history goes on; whoever has seen enough stops asking."""
    case, history = world.case, History()
    history.apply({"event": "declared", "study": {}, "study_hash": "", "data_digest": ""})
    for blocks in (study.protocol.blocks, *case.extend):
        if blocks > study.protocol.blocks:
            history.apply({"event": "extended", "blocks": blocks})
        whole = len(history.done)
        for record in records(study, blocks, world, history):
            history.apply(record)
            if case.peek and record["event"] == "request_done" and len(history.done) > whole:
                whole = len(history.done)
                verdict = decide(study, history)
                if verdict.interim:
                    yield history, verdict
        yield history, decide(study, history)


def records(study: Study, blocks: int, world: World, history: History) -> Iterator[dict[str, Any]]:
    """The ledger records still missing in `history` of a study of so many blocks, as search would write
    them. Each must be applied before the next is asked for."""
    machine = Machine(replace(study, protocol=replace(study.protocol, blocks=blocks)))
    while (request := machine.ask()) is not DONE:
        if isinstance(request, Gate):
            if request.name not in history.gates:
                yield judge(study, history, request)
            machine.answer(request, history.gates[request.name]["open"])
            continue
        assert isinstance(request, Request), "one request at a time never has to wait"
        if request.position not in history.done:
            yield from run(request, world)
        rows = {t.arm: t for t in history.of(request.position)}
        machine.tell(request.position, {arm: rows[arm].score for arm in request.arms})


def run(request: Request, world: World) -> Iterator[dict[str, Any]]:
    """The records of one request."""
    where = {"position": request.position}
    asked = {"event": "asked", **where, "request": request.to_dict()}
    yield {**asked, "content_hash": "", "reused_from": None}
    ends = {arm: world.train(request, arm) for arm in request.arm_order()}
    for arm, (status, val, _) in ends.items():
        yield from training(request, arm, status, val)
    tests = {arm: bits for arm, (_, _, bits) in ends.items() if bits is not None}
    if tests:
        yield {"event": "test_look", **where, "arms": list(tests), "examples": EXAMPLES}
    marks = {a: {"accuracy": float(b.mean()), "correct": pack_bits(b)} for a, b in tests.items()}
    yield {"event": "request_done", **where, "test": marks}


def training(request: Request, arm: str, status: str, val: float) -> Iterator[dict[str, Any]]:
    """The records of one training."""
    where = {"position": request.position, "arm": arm, "attempt": 1}
    steps = request.steps.get(arm, STEPS)
    result = TrainingResult(
        arm=arm, status=status, steps=steps, allotted_steps=steps, val_accuracy=val, val_best=val
    )
    yield {"event": "training_started", **where}
    yield {"event": "training_done", **where, "result": dict(vars(result))}
