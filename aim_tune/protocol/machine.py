"""Which request comes next: explore, its finalists -> blocks of twins -> confirm pairs; ask and tell.

Pure and deterministic: the request at a position is a function of the study and of results named by
the protocol, never of timing, slots or process. So resuming is a new Machine that is asked again and
told what the ledger knows. It keeps no file, runs nothing and sees no test score.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from aim_tune.protocol.blocks import (
    Allotted,
    Matched,
    confirm_stage,
    granted_steps,
    later_stage,
    match_stage,
    twin_stage,
)
from aim_tune.protocol.earlier import EarlierTrial
from aim_tune.protocol.explore import Chosen, ExploreStage, choose, finals_stage
from aim_tune.protocol.gates import Gate
from aim_tune.protocol.points import Recorded, nothing_recorded, whole_space
from aim_tune.protocol.reruns import Pool, rerun_stage
from aim_tune.protocol.sampling import Space
from aim_tune.protocol.stages import Stage, Told, known
from aim_tune.spec.request import STREAMS, Request
from aim_tune.spec.study import MEASURED, Study
from aim_tune.spec.values import derive_seed


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
    the block's twins are told. Cost of ask and tell does not grow with the number of blocks. Where
    looks are planned, or a budget or arms that wait, `ask` may give a Gate, to be answered. `allotted`
    is what a recipe grants in steps; shortened and matched trainings are a multiple of it. Points that
    TPE proposed before are taken from `recorded`: proposing 10,000 again is most of a resume's time.
    Everything else is derived anew, for the conductor to compare. `earlier` are the trials of the study's
    warm start.
    """

    def __init__(
        self,
        study: Study,
        *,
        allotted: Allotted = lambda recipe: recipe.steps or 0,
        recorded: Recorded = nothing_recorded,
        earlier: Sequence[EarlierTrial] = (),
    ) -> None:
        self.study = study
        self.chosen: Chosen | None = None
        """What explore chose; None without explore and before its end."""
        self._seed = study.protocol.seed
        self._recorded = recorded
        self._explore = (
            ExploreStage(study, recorded, earlier) if study.protocol.explore.trials else None
        )
        self._outstanding: dict[str, tuple[Stage, int, tuple[str, ...]]] = {}
        self._ready: list[tuple[int, Stage]] = []
        """Heap of the stages that may ask, by the place of their next request (places differ)."""
        self._next_block = 0
        self._end = study.protocol.blocks
        """Blocks to run: fewer once a gate was closed."""
        self._whole = 0
        """Blocks that are done."""
        self._answers: dict[str, bool] = {}
        """Gate -> whether it is open."""
        self._waiting: list[Stage] = []
        """Twins of the blocks in which arms wait for a "better"."""
        self._allotted = allotted
        self._pool = Pool()
        self._rerun = False
        """Whether the best points' re-runs are queued."""
        self._match: Stage | None = None
        self._matched: Matched | None = None
        if self._explore is not None:
            self._queue(self._explore)

    @property
    def design(self) -> Mapping[str, Any] | None:
        """Add-on settings that explore chose; None without explore and before its end."""
        return self.chosen.design if self.chosen else None

    def ask(self) -> Request | Gate | Signal:
        """The next request in canonical order that is ready, a gate to `answer`, WAIT, or DONE when all
        is told."""
        if not self._ready and not self._exploring and (gate := self._open()):
            return gate
        if not self._ready:
            return WAIT if self._outstanding else DONE
        _, stage = heapq.heappop(self._ready)
        request = self._request(stage)
        self._queue(stage)
        return request

    def tell(self, position: str, scores: Mapping[str, Told | float | None]) -> None:
        """What came of a request, per arm: all that is known of the training, or only its validation
        accuracy; None (or NaN) for an arm that has no score."""
        assert position in self._outstanding, f"{position} was not asked, or was told before"
        stage, number, arms = self._outstanding[position]
        assert set(scores) == set(arms), f"{position}: scores of {sorted(scores)}, not {arms}"
        del self._outstanding[position]
        waiting = not stage.ready
        stage.tell(number, {arm: _told(scores[arm]) for arm in arms})
        if stage.complete:
            self._close(stage)
        elif waiting:
            self._queue(stage)

    def answer(self, gate: Gate, is_open: bool) -> None:
        """Whether the study goes on at a gate. A closed one before a block ends the blocks there."""
        self._answers[gate.name] = is_open
        if gate.kind != "attribution" and not is_open:
            self._end = min(self._end, gate.blocks)

    @property
    def _exploring(self) -> bool:
        return self._explore is not None and self.chosen is None

    def _open(self) -> Gate | None:
        """Queue what may come next, if anything; or the gate that stands before it."""
        block = self._next_block
        if block in self.study.protocol.looks and self._whole < block:
            return None
        gate = next((g for g in self._gates(block) if g.name not in self._answers), None)
        if gate is not None:
            return gate
        if block < self._end:
            if self._measured(self.study.main_arms):
                arms = self.study.main_arms
                self._queue(twin_stage(self.study, self._space, block, arms, self._recorded))
                self._next_block += 1
        elif self._whole == self._end:
            return self._open_later()
        return None

    def _gates(self, block: int) -> Iterator[Gate]:
        """The gates before a block."""
        if block in self.study.protocol.looks:
            yield Gate(name=f"look/{block}", blocks=block)
        if self.study.protocol.budget_gpu_hours is not None and 0 < block < self._end:
            yield Gate(name=f"block/{block}", blocks=block)

    def _open_later(self) -> Gate | None:
        """The same for the arms that wait, once all blocks are done; then the re-runs."""
        if self._waiting:
            gate = Gate(name=f"attribution/{self._end}", blocks=self._end)
            if gate.name not in self._answers:
                return gate
            if self._answers[gate.name]:
                if self._measured(self.study.later_arms):
                    self._queue(later_stage(self.study, self._waiting.pop(0)))
                return None
            self._waiting.clear()
        if not self._outstanding and not self._rerun:
            self._rerun = True
            self._queue(rerun_stage(self.study, self._pool.points(self.study), self._end))
        return None

    def _measured(self, arms: Sequence[str]) -> bool:
        """Whether all is known that these arms need; if not, match/0 is queued."""
        if self._matched is not None or not set(arms) & set(MEASURED):
            return True
        if self._match is None:
            self._match = match_stage(self.study, self._space)
            self._queue(self._match)
        return False

    @property
    def _space(self) -> Space:
        return self.chosen.space if self.chosen else whole_space(self.study)

    def _queue(self, stage: Stage) -> None:
        if stage.ready:
            heapq.heappush(self._ready, (stage.order + stage.asked, stage))

    def _close(self, stage: Stage) -> None:
        """What follows from a finished stage; its results are then let go."""
        explore = self._explore
        if stage.kind in ("explore", "twin", "confirm"):
            self._pool.take(stage)
        if stage is explore and self.study.protocol.explore.finalists:
            self._queue(finals_stage(self.study, explore))
        elif explore is not None and stage.kind in ("explore", "finals"):
            self.chosen = choose(self.study, explore, stage)
        elif stage.kind == "match":
            self._matched = Matched.of(self.study, stage.told[0])
        elif stage.kind == "twin":
            confirm = confirm_stage(self.study, stage)
            self._queue(confirm)
            if not _is_later(stage):
                self._whole += not confirm.size
                if self.study.later_arms:
                    bisect.insort(self._waiting, stage, key=lambda twins: twins.block)
        elif stage.kind == "confirm" and not _is_later(stage):
            self._whole += 1

    def _request(self, stage: Stage) -> Request:
        number = stage.asked
        arms = stage.ask()
        if self._matched:
            arms = {arm: self._matched.point(arm, point) for arm, point in arms.items()}
        home, position = stage.place(number)
        self._outstanding[position] = (stage, number, tuple(arms))
        return Request(
            position=position,
            arms=arms,
            streams=self._streams(home, position),
            turn=stage.block + number,  # every arm goes first in its turn, in every kind of request
            test=stage.kind == "confirm",
            stop=stage.ladders(number),
            steps=granted_steps(self.study, stage.kind, arms, self._allotted, self._matched),
        )

    def _streams(self, home: str, position: str) -> dict[str, int]:
        """Explore shares one set of streams, so that equal points are duplicates; its finalists share
        one per seed. Other requests have fresh ones, except for the split, which is their block's; arms
        that are trained later get those of the first."""
        place = home if home.startswith("explore") else position.replace("after/", "block/")
        return {
            name: derive_seed(self._seed, home if name == "split" else place, name)
            for name in STREAMS
        }


def _told(value: Told | float | None) -> Told:
    return value if isinstance(value, Told) else Told(score=known(value))


def _is_later(stage: Stage) -> bool:
    """Whether its arms had to wait for a "better"."""
    return stage.place(0)[1].startswith("after/")
