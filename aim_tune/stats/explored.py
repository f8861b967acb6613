"""What explore came to: the design, the ranges the blocks draw from, and each arm's Pareto set.

Read from the ledger; nothing here is a claim. The design is the one the blocks use, so it is not known
before the first of them is asked. A Pareto set holds the trainings that no other of the same arm beats in
one objective without losing in another; scores are of single trainings, so its best is partly luck.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aim_tune.ledger import History, Training
from aim_tune.spec.space import Domain, Fixed
from aim_tune.spec.study import Study
from aim_tune.stats.devices import device_counts, on_one_type
from aim_tune.stats.narrow import LEAST_TRIALS, block_ranges, recorded_trials


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A training of a Pareto set."""

    position: str
    shared: Mapping[str, Any]
    addon: Mapping[str, Any]
    val_accuracy: float
    """In [0, 1]."""
    step_ms: float | None
    parameters: int | None


@dataclass(frozen=True, kw_only=True)
class Explored:
    """Explore, in facts."""

    trials: int
    """Done so far."""
    arms: tuple[str, ...]
    """The arms it trained."""
    design: Mapping[str, Any] | None = None
    """Searched settings of the add-on that the blocks use; None while there is none."""
    ranges: Mapping[str, Any] = field(default_factory=dict)
    """What the blocks draw shared settings from, as a study file writes it."""
    narrowed: Mapping[str, Any] = field(default_factory=dict)
    """What was asked of those settings whose range explore has made smaller."""
    not_narrowed: str = ""
    """Why ranges were to be narrowed and are as they were."""
    objectives: tuple[str, ...] = ("val_accuracy",)
    pareto: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    """Per arm, most accurate first; empty with one objective."""
    warm_start: str = ""
    """What the search went on from, such as "8 trials of study first"; empty: nothing."""
    devices: Mapping[str, int] = field(default_factory=dict)
    """Type of device -> explore's trainings there, most first; step times are of the first type alone."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Explored:
        """From its plain JSON form."""
        sets = {a: tuple(Offer(**o) for o in offers) for a, offers in value["pareto"].items()}
        tuples = {k: tuple(value[k]) for k in ("arms", "objectives")}
        return cls(**{**value, **tuples, "pareto": sets})


def explore_facts(study: Study, history: History) -> Explored | None:
    """The facts; None where the study does not explore."""
    plan = study.protocol.explore
    if not plan.trials:
        return None
    ranges = block_ranges(study, history)
    smaller = {k: d for k, d in study.shared.items() if ranges[k] != d}
    trials = recorded_trials(history, plan.trials)
    several = len(plan.objectives) > 1
    return Explored(
        trials=len(trials),
        arms=study.explore_arms,
        design=_design(study, history),
        ranges={k: d.to_json() for k, d in ranges.items() if _searched(d) or k in smaller},
        narrowed={k: d.to_json() for k, d in smaller.items()},
        not_narrowed=_reason(sum(not t.repeat for t in trials))
        if plan.narrow and len(trials) == plan.trials and not smaller
        else "",
        objectives=plan.objectives,
        pareto={arm: pareto_set(study, history, arm) for arm in study.explore_arms}
        if several
        else {},
        warm_start=plan.went_on_from.said if plan.went_on_from else "",
        devices=device_counts(explored_rows(history, timed=False)),
    )


def pareto_set(study: Study, history: History, arm: str) -> tuple[Offer, ...]:
    """The arm's finished explore trainings that are not beaten, most accurate first.

    Trainings that failed, were stopped, repeat another or lack an objective do not take part; with
    step_ms neither do those on other types of device than most of explore's.
    """
    objectives = study.protocol.explore.objectives
    whole = explored_rows(history, timed="step_ms" in objectives)
    rows = [t for t in whole if t.arm == arm and t.status == "ok"]
    offers = [o for o in map(_offer, rows) if all(getattr(o, n) is not None for n in objectives)]
    kept = [o for o in offers if not any(_beats(p, o, objectives) for p in offers)]
    return tuple(sorted(kept, key=lambda o: -o.val_accuracy))


def explored_rows(history: History, *, timed: bool) -> list[Training]:
    """Explore's trainings, each once; `timed`: those alone whose times may be set side by side."""
    rows = [t for t in history.rows("explore") if not t.reused_from]
    return on_one_type(rows) if timed else rows


def _offer(training: Training) -> Offer:
    result = training.result
    assert result is not None, "an ok training has a result"
    assert training.score is not None, "and a score"
    return Offer(
        position=training.position,
        shared=_plain(training.point.shared),
        addon=_plain(training.point.addon),
        val_accuracy=training.score,
        step_ms=result.step_ms,
        parameters=result.parameters or None,
    )


def _beats(one: Offer, other: Offer, objectives: Sequence[str]) -> bool:
    """Whether `one` is nowhere worse and somewhere better."""
    gains = [_gain(one, name) - _gain(other, name) for name in objectives]
    return min(gains) >= 0 and max(gains) > 0


def _gain(offer: Offer, name: str) -> float:
    return float(getattr(offer, name)) * (1 if name == "val_accuracy" else -1)


def _searched(domain: Domain) -> bool:
    return not isinstance(domain, Fixed)


def _design(study: Study, history: History) -> dict[str, Any] | None:
    """From the first request of the blocks: all of them use the one design."""
    row = next(iter(history.rows("twin")), None)
    space = study.addon.space if study.addon else {}
    if row is None:
        return None
    points = [t.point.addon for t in history.of(row.position) if t.point.addon]
    searched = {k for k, d in space.items() if _searched(d)}
    return _plain({k: v for k, v in points[0].items() if k in searched}) if points else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back."""
    return dict(json.loads(json.dumps(dict(values))))


def _reason(trials: int) -> str:
    if trials < LEAST_TRIALS:
        return f"{trials} different trials are too few; {LEAST_TRIALS} are needed"
    return "what was good reaches from end to end"
