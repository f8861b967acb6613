"""Which request comes next: explore, its finalists -> blocks of twins -> confirm pairs; ask and tell.

Pure and deterministic: the request at a position is a function of the study and of results named by
the protocol, never of timing, slots or process. So resuming is a new Machine that is asked again and
told what the ledger knows. It keeps no file, runs nothing and sees no test score.
"""

from __future__ import annotations

import heapq
from enum import Enum
from typing import Any

from aim_tune.protocol.explore import best_design, explore_stage, finals_stage
from aim_tune.protocol.points import even_mean, random_points, searched_points, whole_space
from aim_tune.protocol.stages import Scores, Stage, argmax, known
from aim_tune.spec.request import STREAMS, Point, Request
from aim_tune.spec.study import Study
from aim_tune.spec.values import derive_seed

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
        self._seed = study.protocol.seed
        self._exploring = study.protocol.explore.trials > 0
        self._outstanding: dict[str, tuple[Stage, int, tuple[str, ...]]] = {}
        self._ready: list[tuple[int, Stage]] = []
        """Heap of the stages that may ask, by the place of their next request (places differ)."""
        self._next_block = 0
        if self._exploring:
            self._queue(explore_stage(study))

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
        stage.tell(number, {arm: known(scores[arm]) for arm in arms})
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
            self._queue(finals_stage(self.study, stage))
        elif stage.kind in ("explore", "finals"):
            self.design = best_design(self.study, stage)
            self._exploring = False
        elif stage.kind == "twin":
            self._queue(self._confirm_stage(stage))

    def _request(self, stage: Stage) -> Request:
        number = stage.asked
        arms = stage.ask()
        home, position = stage.place(number)
        self._outstanding[position] = (stage, number, tuple(arms))
        return Request(
            position=position,
            arms=arms,
            streams=self._streams(home, position),
            turn=stage.block + number,  # every arm goes first in its turn, in every kind of request
            test=stage.kind == "confirm",
        )

    def _streams(self, home: str, position: str) -> dict[str, int]:
        """Explore shares one set of streams, so that equal points are duplicates; its finalists share
        one per seed. Other requests have fresh ones, except for the split, which is their block's."""
        place = home if home.startswith("explore") else position
        return {
            name: derive_seed(self._seed, home if name == "split" else place, name)
            for name in STREAMS
        }

    def _twin_stage(self, block: int) -> Stage:
        protocol, home = self.study.protocol, f"block/{block}/twin"
        space = whole_space(self.study, self.design)
        searches = protocol.twins > MOST_RANDOM_TWINS
        return Stage(
            kind="twin",
            block=block,
            order=protocol.explore.requests + block * (protocol.twins + protocol.confirm),
            size=protocol.twins,
            lag=protocol.explore.lag if searches else None,
            propose=searched_points(self.study, space, home, protocol.twins, even_mean)
            if searches
            else random_points(self.study, space, home),
            place=lambda number: (f"block/{block}", f"{home}/{number}"),
        )

    def _confirm_stage(self, twins: Stage) -> Stage:
        best = {arm: _best_point(twins, arm) for arm in self.study.arms}
        home = f"block/{twins.block}"
        return Stage(
            kind="confirm",
            block=twins.block,
            order=twins.order + twins.size,
            size=self.study.protocol.confirm,
            lag=None,
            propose=lambda number, results: best,
            place=lambda number: (home, f"{home}/confirm/{number}"),
        )


def _best_point(twins: Stage, arm: str) -> Point:
    """The arm's own best of the block; its first point where every twin failed, so that the arm
    still gets the trainings it was allotted."""
    return twins.points[argmax([scores[arm] for scores in twins.known])][arm]
