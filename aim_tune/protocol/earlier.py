"""What a study takes over from an earlier one of the same space: explore points, and what came of each.

Only that study's own finished trials come over, each point once; what it had taken over itself does not.
A trial that was stopped early comes over as stopped, one without a score not at all: TPE learns nothing
from it. Whether the space is the same is judged in engine.warm_start. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aim_tune.ledger import History
from aim_tune.protocol.points import addon_mean
from aim_tune.protocol.stages import Told
from aim_tune.spec.request import Point
from aim_tune.spec.study import Study, WarmStart
from aim_tune.spec.values import short_hash


@dataclass(frozen=True, kw_only=True)
class EarlierTrial:
    """One explore trial of the earlier study."""

    position: str
    """In that study."""
    point: Point
    """Shared part, and the add-on's where an arm has it."""
    told: Mapping[str, Told]
    """Arm -> what its training came to. No step time: those of another run do not compare."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        told = {arm: _told_to_dict(one) for arm, one in self.told.items()}
        return {"position": self.position, "point": self.point.to_dict(), "told": told}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> EarlierTrial:
        """Inverse of `to_dict`."""
        told = {
            arm: Told(**{**one, "passes": tuple(one.get("passes", ()))})
            for arm, one in value["told"].items()
        }
        return cls(position=value["position"], point=Point.from_dict(value["point"]), told=told)


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """All that comes over, with where it is from; the `declared` record holds it as `earlier`."""

    study: str
    study_hash: str
    code_hash: str
    records: int
    """Length of its ledger when it was read."""
    planned: int
    """Explore trials that it was to have."""
    finished: int
    """Of these, those that had ended by then."""
    trials: tuple[EarlierTrial, ...]

    @property
    def start(self) -> WarmStart:
        """What the study file, and so the study's hash, holds of it."""
        return WarmStart(
            study=self.study,
            study_hash=self.study_hash,
            trials=len(self.trials),
            digest=digest_of(self.trials),
        )

    @property
    def said(self) -> str:
        """ "5 trials of study first (of 8 planned; 7 finished, 2 of them of no use)"."""
        unused = self.finished - len(self.trials)
        if len(self.trials) == self.planned:
            return self.start.said
        finished = f"{self.finished} finished" + (f", {unused} of them of no use" if unused else "")
        return f"{self.start.said} (of {self.planned} planned; {finished})"

    def only(self, positions: Sequence[str]) -> Earlier:
        """The same with some of the trials."""
        kept = tuple(trial for trial in self.trials if trial.position in set(positions))
        return replace(self, trials=kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        own = {k: v for k, v in vars(self).items() if k != "trials"}
        return {**own, "trials": [trial.to_dict() for trial in self.trials]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Earlier:
        """Inverse of `to_dict`."""
        trials = tuple(EarlierTrial.from_dict(trial) for trial in value["trials"])
        return cls(**{**value, "trials": trials})


def digest_of(trials: Sequence[EarlierTrial]) -> str:
    """Short hash of points and results: equal content is the same, whatever study it is from."""
    return short_hash([trial.to_dict() for trial in trials])


def taken_from(study: Study, history: History, *, stopped: bool = True) -> Earlier:
    """What can be taken over from a study and its history; it may still run. `stopped`: also trials that
    were stopped early, which a search with several objectives cannot use."""
    asked = [f"explore/{number}" for number in range(study.protocol.explore.trials)]
    done = [position for position in asked if position in history.done]
    found = [_trial(history, position) for position in done]
    declared = history.declared or {}
    return Earlier(
        study=study.name,
        study_hash=str(declared.get("study_hash", study.study_hash)),
        code_hash=str(declared.get("code_hash", "")),
        records=history.events,
        planned=len(asked),
        finished=len(done),
        trials=tuple(t for t in found if t is not None and _tells(study, t, stopped)),
    )


def recorded_in(history: History | None) -> Earlier | None:
    """What a study has taken over, by its own ledger; None: nothing, or it has not begun."""
    value = (history.declared or {}).get("earlier") if history else None
    return Earlier.from_dict(value) if value else None


def _trial(history: History, position: str) -> EarlierTrial | None:
    """None for a repeat of an earlier trial: the same trainings count once."""
    rows = history.of(position)
    if rows[0].reused_from is not None:
        return None
    told = {row.arm: replace(Told.of(row), step_ms=None, device="") for row in rows}
    if not any(one.pruned for one in told.values()):
        told = {arm: replace(one, passes=()) for arm, one in told.items()}
    point = next((row.point for row in rows if row.point.addon), rows[0].point)
    return EarlierTrial(position=position, point=point, told=told)


def _tells(study: Study, trial: EarlierTrial, stopped: bool) -> bool:
    """Whether there is something to learn from it: each arm that leads a search has a score."""
    if not stopped and any(one.pruned for one in trial.told.values()):
        return False
    return addon_mean(study, {arm: one.score for arm, one in trial.told.items()}) is not None


def _told_to_dict(told: Told) -> dict[str, Any]:
    """Without what is at its default."""
    value: dict[str, Any] = {"score": told.score}
    if told.pruned:
        value["pruned"] = True
    if told.passes:
        value["passes"] = list(told.passes)
    if told.parameters is not None:
        value["parameters"] = told.parameters
    return value
