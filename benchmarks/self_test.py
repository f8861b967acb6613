"""The protocol tried on itself: thousands of simulated studies through the real code, training replaced.

Each study runs the real Machine (requests, explore, the choice of each arm's best), real ledger records
applied to a real History, and `decide`. Only the training is invented: accuracy = level + split
- C |z - z*|^2 + effect + config-by-split noise, in points; z = lr, weight decay and label smoothing, each
scaled to [0, 1]. Validation adds seed noise (sd 0.5). A confirm run draws every test example: 2,000
examples whose chances are Beta distributed around 90 %: the sd between two runs is 0.5 points as well.

    python benchmarks/self_test.py                        all cases, about 5 minutes on 2 idle cores; the
                                                          figures stand in docs/evidence.md
    python benchmarks/self_test.py identical --studies 400 --json -
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from aim_tune.ledger import History, TrainingResult, pack_bits
from aim_tune.protocol import DONE, Machine
from aim_tune.protocol.plan import power
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
STEPS = 100
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
MOST_WRONG = 0.06
"""Largest share of false verdicts, better and worse together."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A world and the plan it is studied with."""

    about: str
    null: bool = True
    """Whether better and worse are both wrong (with `own_examples`: for new examples only, as the arms
    do differ on the test set that there is)."""
    plan: tuple[int, int, int] = DEFAULT
    arms: tuple[str, ...] = (BASELINE, "aim")
    explore: int = 0
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
                explore=Explore(trials=self.explore),
                blocks=blocks,
                twins=twins,
                confirm=confirm,
                seed=seed,
            ),
        )


CASES: Mapping[str, Case] = {
    "identical": Case(about="identical arms, default plan"),
    "quick": Case(about="identical arms, quick plan", plan=QUICK),
    "shifted": Case(
        about="optima apart by 0.1 of every range, mirrored around its middle",
        best={BASELINE: 0.45, "aim": 0.55},
    ),
    "irrelevant": Case(
        about="no setting matters: how often chance alone warns of an edge",
        steepness={BASELINE: 0.0, "aim": 0.0},
    ),
    "designs": Case(
        about="27 designs without effect through explore; placebo beside it; quick plan",
        plan=QUICK,
        arms=(BASELINE, "aim", "frozen"),
        explore=12,
    ),
    "divergence": Case(about="5 % of the trainings of either arm diverge (-4)", diverging=0.05),
    "examples": Case(
        about="one shared test set on which the arms differ (sd of the gap 0.38 points)",
        own_examples=0.36,
    ),
    "flat_basin": Case(
        about="same optimum, the arm's basin 3 times flatter (reported: tuning luck is an effect)",
        null=False,
        steepness={"aim": STEEPNESS / 3},
    ),
    "cut_off": Case(
        about="only lr matters; the baseline's optimum lies beyond its range (reported: is it warned of?)",
        null=False,
        axes=("lr",),
        best={BASELINE: 1.2, "aim": 0.7},
    ),
    "half_point": Case(about="planted +0.5 points, default plan", null=False, effects={"aim": 0.5}),
    "one_point": Case(about="planted +1.0 points, default plan", null=False, effects={"aim": 1.0}),
    "quick_point": Case(
        about="planted +1.0 points, quick plan", null=False, plan=QUICK, effects={"aim": 1.0}
    ),
}


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
        self.luck: dict[tuple[int | None, str], float] = {}

    def level(self, request: Request, arm: str) -> float:
        """True accuracy of an arm's point on the split of its block, points."""
        case, point = self.case, request.arms[arm]
        if request.block not in self.levels:
            self.levels[request.block] = LEVEL + self.rng.normal(0, SPLIT_SD)
        loss = case.steepness.get(arm, STEEPNESS) * distance(
            point, case.axes, case.best.get(arm, 0.5)
        )
        return self.levels[request.block] - loss + case.effects.get(arm, 0.0)

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
        key = (
            request.block,
            arm,
        )  # the block's choice meets the same test set in every confirm run
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


def records(study: Study, world: World) -> Iterator[dict[str, Any]]:
    """Every ledger record of a study, as search would write them."""
    yield {"event": "declared", "study": {}, "study_hash": "", "data_digest": ""}
    machine = Machine(study)
    while (request := machine.ask()) is not DONE:
        assert isinstance(request, Request), "one request at a time never has to wait"
        yield {
            "event": "asked",
            "position": request.position,
            "request": request.to_dict(),
            "content_hash": "",
            "reused_from": None,
        }
        ends = {arm: world.train(request, arm) for arm in request.arm_order()}
        for arm, (status, val, _) in ends.items():
            yield from training(request.position, arm, status, val)
        tests = {arm: bits for arm, (_, _, bits) in ends.items() if bits is not None}
        if tests:
            look = {"event": "test_look", "position": request.position, "arms": list(tests)}
            yield {**look, "examples": EXAMPLES}
        marks = {
            a: {"accuracy": float(b.mean()), "correct": pack_bits(b)} for a, b in tests.items()
        }
        yield {"event": "request_done", "position": request.position, "test": marks}
        machine.tell(request.position, {arm: ends[arm][1] for arm in request.arms})


def training(position: str, arm: str, status: str, val: float) -> Iterator[dict[str, Any]]:
    """The records of one training."""
    where = {"position": position, "arm": arm, "attempt": 1}
    result = TrainingResult(
        arm=arm, status=status, steps=STEPS, allotted_steps=STEPS, val_accuracy=val, val_best=val
    )
    yield {"event": "training_started", **where}
    yield {"event": "training_done", **where, "result": dict(vars(result))}


def study_verdict(case: Case, seed: int) -> Verdict:
    """One simulated study, judged."""
    study, history = case.study(seed), History()
    for record in records(study, World(case, seed)):
        history.apply(record)
    return decide(study, history)


def figures_of(name: str, seed: int) -> dict[str, Any]:
    """What is counted of one study."""
    verdict = study_verdict(CASES[name], seed)
    interval = verdict.primary.ci95_points if verdict.primary else None
    assert interval is not None, "every simulated study has an interval"
    truth = CASES[name].effects.get("aim", 0.0)
    return {
        "verdict": verdict.verdict,
        "local": verdict.claim == "this_test_set" and verdict.verdict in ("better", "worse"),
        "effect": verdict.effect_points,
        "covered": interval[0] <= truth <= interval[1],
        "block_sd": float(np.std(verdict.primary.differences_points, ddof=1)),
        "closing": bool(verdict.gap and verdict.gap.closing),
        "frozen": verdict.attribution.get("frozen", ""),
        "edges": len(verdict.edges),
    }


def summary(case: Case, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Shares over the studies of a case."""
    count = len(rows)

    def share(hits: int) -> dict[str, float]:
        low, high = stats.binomtest(hits, count).proportion_ci(method="wilson")
        return {"share": hits / count, "low": float(low), "high": float(high)}

    verdicts = Counter(r["verdict"] for r in rows)
    wide = Counter(r["verdict"] for r in rows if not r["local"])
    figures: dict[str, Any] = {
        "about": case.about,
        "studies": count,
        "verdicts": {name: hits / count for name, hits in sorted(verdicts.items())},
        "better": share(verdicts["better"]),
        "worse": share(verdicts["worse"]),
        "decided": share(verdicts["better"] + verdicts["worse"]),
        "decided_for_new_examples": share(wide["better"] + wide["worse"]),
        "on_this_test_set_only": sum(r["local"] for r in rows) / count,
        "covered": sum(r["covered"] for r in rows) / count,
        "mean_effect": float(np.mean([r["effect"] for r in rows])),
        "mean_block_sd": float(np.sqrt(np.mean([r["block_sd"] ** 2 for r in rows]))),
        "gap_closing": sum(r["closing"] for r in rows) / count,
        "edge_warnings": sum(r["edges"] > 0 for r in rows) / count,
    }
    if "frozen" in case.arms:
        outcomes = Counter(r["frozen"] for r in rows)
        figures["attribution"] = {name: hits / count for name, hits in sorted(outcomes.items())}
    effect = case.effects.get("aim")
    if effect:
        figures["planned_power"] = power(case.study(0), effect, seed_sd=SEED_SD)
    return figures


def run(names: Sequence[str], studies: int, *, processes: int, seed: int = 0) -> dict[str, Any]:
    """All figures, case by case."""
    found: dict[str, Any] = {}
    with Pool(processes) as pool:
        for name in names:
            start, count = (
                time.perf_counter(),
                studies if CASES[name].null else max(1, studies // 4),
            )
            seeds = range(seed, seed + count)
            rows = pool.map(partial(figures_of, name), seeds, chunksize=max(1, count // 64))
            found[name] = summary(CASES[name], rows)
            found[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(line(name, found[name]), flush=True)
    return found


def wrong_share(name: str, figures: Mapping[str, Any]) -> float:
    """Share of false verdicts in a null case."""
    key = "decided_for_new_examples" if CASES[name].own_examples else "decided"
    return float(figures[key]["share"])


def line(name: str, figures: Mapping[str, Any]) -> str:
    """One case on one line, for the screen."""
    both = figures["decided"]
    text = (
        f"{name:12s} n = {figures['studies']:,}: better {figures['better']['share']:.1%}, worse "
        f"{figures['worse']['share']:.1%}, both {both['share']:.1%} [{both['low']:.1%}, "
        f"{both['high']:.1%}], for new examples {figures['decided_for_new_examples']['share']:.1%}, "
        f"covered {figures['covered']:.1%}, block sd {figures['mean_block_sd']:.2f}, edge warnings "
        f"{figures['edge_warnings']:.1%}"
    )
    if "planned_power" in figures:
        text += f", planned power {figures['planned_power']:.1%}"
    return f"{text} ({figures['seconds']:.0f} s)"


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write. Exit code 1 where a null case errs in more than 6 % of its studies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument(
        "--studies",
        type=int,
        default=4000,
        help="simulated studies of each null; of the other cases a quarter",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--json", metavar="FILE", help="write the figures there (- for the screen)")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    names = args.cases or list(CASES)
    found = run(names, args.studies, processes=args.processes, seed=args.seed)
    if args.json:
        text = json.dumps(found, indent=1)
        sys.stdout.write(f"{text}\n") if args.json == "-" else Path(args.json).write_text(text)
    wrong = [n for n in names if CASES[n].null and wrong_share(n, found[n]) > MOST_WRONG]
    for name in wrong:
        print(f"FAILED: {name} errs in more than {MOST_WRONG:.0%} of studies")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
