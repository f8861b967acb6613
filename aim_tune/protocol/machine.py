"""Which request comes next: explore, its finalists -> blocks of twins -> confirm pairs; ask and tell.

Pure and deterministic: the request at a position is a function of the study and of results named by
the protocol, never of timing, slots or process. So resuming is a new Machine that is asked again and
told what the ledger knows. It keeps no file, runs nothing and sees no test score.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from aim_tune.protocol.sampling import Space, TpeSearch, draw
from aim_tune.spec.request import STREAMS, Point, Request
from aim_tune.spec.space import Fixed
from aim_tune.spec.study import BASELINE, FINAL_SEEDS, Study
from aim_tune.spec.values import canonical, derive_seed

MOST_RANDOM_TWINS = 10
"""Blocks of up to so many twins draw at random; longer ones search with TPE."""


class Signal(Enum):
    """Answers of `Machine.ask` that are not a request."""

    WAIT = "wait"
    """Nothing can be asked before more results are told."""
    DONE = "done"
    """Every request was asked and told."""


WAIT = Signal.WAIT
DONE = Signal.DONE

Scores = Mapping[str, float | None]
Propose = Callable[[int, Sequence[Scores | None]], Mapping[str, Point]]
"""Number of the trial and the results so far -> point per arm."""


class Stage:
    """A run of requests of one kind; number i may be asked once results 0..i-lag are told."""

    def __init__(
        self, *, kind: str, block: int, order: int, size: int, lag: int | None, propose: Propose
    ) -> None:
        self.kind = kind
        """explore, finals, twin or confirm."""
        self.block = block
        """0 in explore."""
        self.order = order
        """Place of its first request in the canonical order of the whole study."""
        self.size = size
        self.results: list[Scores | None] = [None] * size
        """By number; None until told."""
        self.points: list[Mapping[str, Point]] = []
        self._told_prefix = 0
        self._told_count = 0
        self._lag = size if lag is None else lag
        self._propose = propose

    @property
    def asked(self) -> int:
        """How many requests were asked, hence the number of the next."""
        return len(self.points)

    @property
    def ready(self) -> bool:
        """Whether the next request may be asked."""
        return self.asked < self.size and self._told_prefix > self.asked - self._lag

    @property
    def known(self) -> list[Scores]:
        """The results that were told, in order."""
        return [scores for scores in self.results if scores is not None]

    @property
    def complete(self) -> bool:
        """Whether all results are told."""
        return self._told_count == self.size

    def ask(self) -> Mapping[str, Point]:
        """The points of the next request."""
        self.points.append(self._propose(self.asked, self.results))
        return self.points[-1]

    def tell(self, number: int, scores: Scores) -> None:
        """Take one result, in any order."""
        self.results[number] = scores
        self._told_count += 1
        while self._told_prefix < self.size and self.results[self._told_prefix] is not None:
            self._told_prefix += 1


class Machine:
    """The protocol of one study: ask for requests, tell their scores, until DONE.

        machine = Machine(study)
        while (answer := machine.ask()) is not DONE:
            machine.tell(answer.position, {"baseline": 0.71, "aim": 0.74, "frozen": None})

    Requests come block by block; a block's confirm pairs come before twins of later blocks as soon as
    the block's twins are told. Cost of ask and tell does not grow with the number of blocks.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.design: dict[str, Any] | None = None
        """Add-on settings that explore chose; None without explore and before its end."""
        self._addon: Space = study.addon.space if study.addon and study.addon_arms else {}
        self._seed = study.protocol.seed
        self._exploring = study.protocol.explore.trials > 0
        self._outstanding: dict[str, tuple[Stage, int, tuple[str, ...]]] = {}
        self._ready: list[tuple[int, Stage]] = []
        """Heap of the stages that may ask, by the place of their next request (places differ)."""
        self._next_block = 0
        if self._exploring:
            self._queue(self._explore_stage())

    def ask(self) -> Request | Signal:
        """The next request in canonical order that is ready, WAIT, or DONE when all is told."""
        if not self._ready and self._may_open_block:
            self._queue(self._twin_stage(self._next_block))
            self._next_block += 1
        if not self._ready:
            return WAIT if self._outstanding else DONE
        _, stage = heapq.heappop(self._ready)
        request = self._request(stage)
        self._queue(stage)
        return request

    def tell(self, position: str, scores: Scores) -> None:
        """Validation accuracy per arm of a request; None (or NaN) for an arm that has no score."""
        assert position in self._outstanding, f"{position} was not asked, or was told before"
        stage, number, arms = self._outstanding[position]
        assert set(scores) == set(arms), f"{position}: scores of {sorted(scores)}, not {arms}"
        del self._outstanding[position]
        waiting = not stage.ready
        stage.tell(number, {arm: _known(scores[arm]) for arm in arms})
        if stage.complete:
            self._close(stage)
        elif waiting:
            self._queue(stage)

    @property
    def _may_open_block(self) -> bool:
        """Blocks start once explore has ended; later ones fill slots while earlier ones run."""
        return not self._exploring and self._next_block < self.study.protocol.blocks

    def _queue(self, stage: Stage) -> None:
        if stage.ready:
            heapq.heappush(self._ready, (stage.order + stage.asked, stage))

    def _close(self, stage: Stage) -> None:
        """What follows from a finished stage; its results are then let go."""
        if stage.kind == "explore" and self.study.protocol.explore.finalists:
            self._queue(self._finals_stage(stage))
        elif stage.kind in ("explore", "finals"):
            self.design = self._best_design(stage)
            self._exploring = False
        elif stage.kind == "twin":
            self._queue(self._confirm_stage(stage))

    def _request(self, stage: Stage) -> Request:
        number = stage.asked
        arms = stage.ask()
        home, position = self._place(stage, number)
        self._outstanding[position] = (stage, number, tuple(arms))
        return Request(
            position=position,
            arms=arms,
            streams=self._streams(home, position),
            turn=stage.block + number,  # every arm goes first in its turn, in every kind of request
            test=stage.kind == "confirm",
        )

    def _place(self, stage: Stage, number: int) -> tuple[str, str]:
        """What the streams are named after, and the position. Finalists count on after the trials."""
        if stage.kind == "explore":
            return "explore", f"explore/{number}"
        if stage.kind == "finals":
            seed = number * FINAL_SEEDS // stage.size
            return f"explore/seed/{seed}", f"explore/{stage.order + number}"
        home = f"block/{stage.block}"
        return home, f"{home}/{stage.kind}/{number}"

    def _streams(self, home: str, position: str) -> dict[str, int]:
        """Explore shares one set of streams, so that equal points are duplicates; its finalists share
        one per seed. Other requests have fresh ones, except for the split, which is their block's."""
        place = home if home.startswith("explore") else position
        return {
            name: derive_seed(self._seed, home if name == "split" else place, name)
            for name in STREAMS
        }

    def _explore_stage(self) -> Stage:
        explore = self.study.protocol.explore
        return Stage(
            kind="explore",
            block=0,
            order=0,
            size=explore.trials,
            lag=explore.lag,
            propose=self._tpe("explore", explore.trials, self._addon_mean, start=True),
        )

    def _finalists(self, explore: Stage) -> list[Mapping[str, Point]]:
        """The best trial of each of the best designs (of the best points without an add-on); filled up
        with the first, whose repeats are duplicates and cost nothing: the number of requests is known
        beforehand."""
        wanted = min(self.study.protocol.explore.finalists, explore.size)
        values = [self._addon_mean(scores) for scores in explore.known]
        ranked = sorted(
            range(explore.size), key=lambda i: -_rank(values[i])
        )  # stable: ties in order
        best: dict[str, Mapping[str, Point]] = {}
        for number in ranked:
            points = explore.points[number]
            point = points[(self.study.addon_arms or self.study.arms)[0]]
            best.setdefault(canonical(dict(point.addon or point.shared)), points)
        chosen = list(best.values())[:wanted]
        return chosen + chosen[:1] * (wanted - len(chosen))

    def _finals_stage(self, explore: Stage) -> Stage:
        """Every finalist with each fresh seed, seed by seed."""
        finalists = self._finalists(explore)
        return Stage(
            kind="finals",
            block=0,
            order=explore.size,
            size=FINAL_SEEDS * len(finalists),
            lag=None,
            propose=lambda number, results: finalists[number % len(finalists)],
        )

    def _twin_stage(self, block: int) -> Stage:
        protocol, home = self.study.protocol, f"block/{block}/twin"
        searches = protocol.twins > MOST_RANDOM_TWINS
        return Stage(
            kind="twin",
            block=block,
            order=protocol.explore.requests + block * (protocol.twins + protocol.confirm),
            size=protocol.twins,
            lag=protocol.explore.lag if searches else None,
            propose=self._tpe(home, protocol.twins, self._even_mean)
            if searches
            else partial(self._random, home),
        )

    def _confirm_stage(self, twins: Stage) -> Stage:
        best = {arm: self._best_point(twins, arm) for arm in self.study.arms}
        return Stage(
            kind="confirm",
            block=twins.block,
            order=twins.order + twins.size,
            size=self.study.protocol.confirm,
            lag=None,
            propose=lambda number, results: best,
        )

    def _random(self, home: str, number: int, results: Sequence[Scores | None]) -> dict[str, Point]:
        generator = np.random.default_rng(self._point_seed(home, number))
        return self._same_point(draw(self._space(), generator))

    def _tpe(
        self,
        home: str,
        trials: int,
        value: Callable[[Scores], float | None],
        *,
        start: bool = False,
    ) -> Propose:
        """Proposals by TPE told `value` of each result; the first is the middle if `start`."""
        lag = self.study.protocol.explore.lag
        search = TpeSearch(self._space(), trials=trials, lag=lag, start_at_middle=start)

        def propose(number: int, results: Sequence[Scores | None]) -> dict[str, Point]:
            def known(index: int) -> float | None:
                scores = results[index]
                assert scores is not None, "the lag holds a request back until this is told"
                return value(scores)

            return self._same_point(search.ask(known, seed=self._point_seed(home, number)))

        return propose

    def _point_seed(self, home: str, number: int) -> int:
        return derive_seed(self._seed, f"{home}/{number}", "point")

    def _space(self) -> Space:
        """Shared settings and the add-on's, which explore, once ended, has fixed."""
        addon = self._addon
        if self.design is not None:
            addon = {name: Fixed(value) for name, value in self.design.items()}
        shared = {f"shared.{name}": domain for name, domain in self.study.shared.items()}
        return {**shared, **{f"addon.{name}": domain for name, domain in addon.items()}}

    def _same_point(self, values: Mapping[str, Any]) -> dict[str, Point]:
        """One drawn point for all arms of a twin; the backbone alone leaves the add-on part out."""
        shared = _part(values, "shared.")
        addon = _part(values, "addon.")
        return {
            arm: Point(shared=shared, addon={} if arm == BASELINE else addon)
            for arm in self.study.arms
        }

    def _best_design(self, stage: Stage) -> dict[str, Any]:
        """Add-on settings of the best explore trial: by the mean of the arms that have the add-on
        (choosing for one of them would favor it), for a finalist by its mean over the fresh seeds.
        The first where none has a score."""
        values = [self._addon_mean(scores) for scores in stage.known]
        if stage.kind == "finals":
            count = stage.size // FINAL_SEEDS
            values = [_mean(values[i::count]) for i in range(count)]
        best = stage.points[_argmax(values)]
        arms = self.study.addon_arms
        return dict(best[arms[0]].addon) if arms else {}

    def _best_point(self, twins: Stage, arm: str) -> Point:
        """The arm's own best of the block; its first point where every twin failed, so that the arm
        still gets the trainings it was allotted."""
        return twins.points[_argmax([scores[arm] for scores in twins.known])][arm]

    def _addon_mean(self, scores: Scores) -> float | None:
        """Mean of the arms that have the add-on; of all arms where none has."""
        return _mean([scores[arm] for arm in self.study.addon_arms or self.study.arms])

    def _even_mean(self, scores: Scores) -> float | None:
        """Mean of the baseline's score and the add-on arms' mean: favors neither side."""
        sides = [self._addon_mean(scores)]
        if BASELINE in scores:
            sides.append(scores[BASELINE])
        return _mean(sides)


def _known(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)


def _mean(scores: Sequence[float | None]) -> float | None:
    """The mean; None where one is missing (a mean over fewer arms could not be compared)."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _argmax(values: Sequence[float | None]) -> int:
    """Index of the first largest value; 0 where there is none."""
    ranked = [_rank(value) for value in values]
    return ranked.index(max(ranked))


def _rank(value: float | None) -> float:
    return -math.inf if value is None else value


def _part(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
