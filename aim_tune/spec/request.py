"""What the protocol hands to an engine: points, requests and jobs. Plain frozen values with a JSON form.

Pairing comes from the streams: every arm of a request trains with the same seeds, whatever process
it runs in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from aim_tune.spec.values import short_hash

STREAMS = ("split", "init", "order", "augment", "dropout", "addon")
"""Named random streams of a training. `split` draws train/val; `init` the backbone's weights;
`addon` the add-on's; the others what their names say. The arms of a request share all of them."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One set of hyperparameters."""

    shared: Mapping[str, Any] = field(default_factory=dict)
    """Same value in every arm of a twin: lr, weight_decay..."""
    addon: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the add-on; empty for the backbone alone."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"shared": dict(self.shared), "addon": dict(self.addon)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Point:
        """Inverse of `to_dict`."""
        return cls(shared=dict(value["shared"]), addon=dict(value["addon"]))


Ladder = Sequence[tuple[int, float]]
"""Rungs of early stopping: (number of the validation pass, the first is 1; least validation accuracy)."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One comparison to run: the arms with their points, under one set of streams."""

    position: str
    """`explore/12`, `match/0`, `block/3/twin/2` or `block/3/confirm/0`: identifies the request in the
    study. `after/3/twin/2` trains more arms on the streams of `block/3/twin/2`."""
    arms: Mapping[str, Point]
    """Arm -> point, in the order of the study."""
    streams: Mapping[str, int]
    """Stream name -> seed, see STREAMS."""
    turn: int = 0
    """Rotates which arm goes first: number of the request plus that of its block."""
    test: bool = False
    """Confirm pairs also return predictions for the sealed test examples."""
    stop: Mapping[str, Ladder] = field(default_factory=dict)
    """Arm -> where its training ends if it is not good enough by then; explore only."""
    steps: Mapping[str, int] = field(default_factory=dict)
    """Arm -> optimizer steps, where they are not the recipe's."""

    @property
    def stage(self) -> str:
        """explore, match, twin or confirm; export for the re-runs of the best points."""
        parts = self.position.split("/")
        return parts[2] if parts[0] in ("block", "after") else parts[0]

    @property
    def block(self) -> int | None:
        """Number of the block; None outside of blocks."""
        parts = self.position.split("/")
        return int(parts[1]) if parts[0] in ("block", "after") else None

    @cached_property
    def content_hash(self) -> str:
        """Identity of what is trained, whatever its position: only used to find duplicates. Ladders do
        not count: a point that was stopped once is not trained again."""
        arms = {arm: point.to_dict() for arm, point in self.arms.items()}
        value = {"arms": arms, "streams": dict(self.streams), "test": self.test}
        return short_hash({**value, "steps": dict(self.steps)} if self.steps else value)

    def arm_order(self) -> tuple[str, ...]:
        """The arms, rotated by `turn`: no arm is always first (first pays for cold caches)."""
        names = tuple(self.arms)
        shift = self.turn % len(names)
        return names[shift:] + names[:shift]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form. Arms are a list of pairs: their order matters."""
        value = {
            "position": self.position,
            "arms": [[arm, point.to_dict()] for arm, point in self.arms.items()],
            "streams": dict(self.streams),
            "turn": self.turn,
            "test": self.test,
        }
        if self.stop:
            value["stop"] = {arm: [list(r) for r in rungs] for arm, rungs in self.stop.items()}
        if self.steps:
            value["steps"] = dict(self.steps)
        return value

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Request:
        """Inverse of `to_dict`."""
        return cls(
            position=value["position"],
            arms={arm: Point.from_dict(point) for arm, point in value["arms"]},
            streams=dict(value["streams"]),
            turn=value["turn"],
            test=value["test"],
            stop={
                arm: tuple((int(number), float(least)) for number, least in rungs)
                for arm, rungs in value.get("stop", {}).items()
            },
            steps=dict(value.get("steps", {})),
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one engine slot runs at a time: all (or, with `pack: arm`, one) of a request's arms."""

    request: Request
    arms: tuple[str, ...]
    """Which arms to train now, in this order; finished ones are left out."""
    attempts: Mapping[str, int]
    """Arm -> number of this attempt (1, 2, 3), for arms in `arms`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {
            "request": self.request.to_dict(),
            "arms": list(self.arms),
            "attempts": dict(self.attempts),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Job:
        """Inverse of `to_dict`."""
        return cls(
            request=Request.from_dict(value["request"]),
            arms=tuple(value["arms"]),
            attempts=dict(value["attempts"]),
        )

    def only(self, arms: Sequence[str]) -> Job:
        """The same job for some of its arms."""
        kept = tuple(a for a in self.arms if a in arms)
        return replace(self, arms=kept, attempts={a: self.attempts[a] for a in kept})
