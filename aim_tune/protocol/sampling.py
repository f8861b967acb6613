"""How domains are sampled: seeded uniform draws (numpy) and Optuna's TPE behind a fixed lag.

A space is a mapping name -> Domain; its names are taken in sorted order, so that a study file with
reordered keys asks for the same points. Choices reach Optuna as JSON text (its categories may not be
lists). Every TPE proposal uses a fresh sampler with its own seed: with the same results told before
the same ask, the proposal is the same, in whatever process. Values are plain JSON values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from aim_tune.spec.space import Choice, Domain, Fixed, IntUniform, Uniform

optuna.logging.set_verbosity(optuna.logging.WARNING)

Space = Mapping[str, Domain]
MOST_STARTUP_TRIALS = 10
"""TPE proposes at random until so many results are in (Optuna's default), or half of a short search."""


def varies(domain: Domain) -> bool:
    """Whether there is anything to choose."""
    match domain:
        case Fixed():
            return False
        case Choice(options):
            return len(options) > 1
        case _:
            return domain.low < domain.high


def middle(space: Space) -> dict[str, Any]:
    """The center of every range (geometric where logarithmic) and the first option of every choice."""
    return {name: _middle(space[name]) for name in sorted(space)}


def _middle(domain: Domain) -> Any:
    match domain:
        case Fixed(value):
            return _plain(value)
        case Choice(options):
            return _plain(options[0])
        case Uniform(low, high, log):
            return min(high, max(low, _center(low, high, log)))  # rounding must not leave the range
        case IntUniform(low, high, log):
            return round(_center(low, high, log))


def _center(low: float, high: float, log: bool) -> float:
    return math.sqrt(low) * math.sqrt(high) if log else (low + high) / 2


def draw(space: Space, generator: np.random.Generator) -> dict[str, Any]:
    """One uniform draw from every domain."""
    return {name: _draw(space[name], generator) for name in sorted(space)}


def _draw(domain: Domain, generator: np.random.Generator) -> Any:
    match domain:
        case Fixed(value):
            return _plain(value)
        case Choice(options):
            return _plain(options[int(generator.integers(len(options)))])
        case Uniform(low, high, True):
            exponent = generator.uniform(math.log(low), math.log(high))
            return min(high, max(low, math.exp(exponent)))
        case Uniform(low, high, False):
            return float(generator.uniform(low, high))
        case IntUniform(low, high, True):
            exponent = generator.uniform(math.log(low - 0.5), math.log(high + 0.5))
            return min(high, max(low, round(math.exp(exponent))))
        case IntUniform(low, high, False):
            return int(generator.integers(low, high, endpoint=True))


def _plain(value: Any) -> Any:
    """The value as JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(value))


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """What Optuna may vary: the domains that have more than one value."""
    return {name: _distribution(space[name]) for name in sorted(space) if varies(space[name])}


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Choice(options):
            return CategoricalDistribution([json.dumps(option) for option in options])
        case Uniform(low, high, log):
            return FloatDistribution(low, high, log=log)
        case IntUniform(low, high, log):
            return IntDistribution(low, high, log=log)
    raise AssertionError(f"{domain} does not vary")


def encode(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's parameters for `values`: the varied ones, choices as JSON text."""
    return {
        name: json.dumps(values[name]) if isinstance(space[name], Choice) else values[name]
        for name in sorted(space)
        if varies(space[name])
    }


def decode(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `encode`, with the values that do not vary filled in."""
    values = middle({name: domain for name, domain in space.items() if name not in params})
    for name, param in params.items():
        values[name] = json.loads(param) if isinstance(space[name], Choice) else param
    return {name: values[name] for name in sorted(space)}


def nearest(space: Space, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A point of the space as near to `wanted` as it allows; the middle where nothing is wanted.

    Numbers are compared by their ratio, lists entry by entry; a choice without the wanted text gives
    its first option.
    """
    return {
        name: _nearest(space[name], wanted[name]) if name in wanted else _middle(space[name])
        for name in sorted(space)
    }


def _nearest(domain: Domain, wanted: Any) -> Any:
    match domain:
        case Fixed(value):
            return _plain(value)
        case Choice(options):
            return _plain(min(options, key=lambda option: _distance(option, wanted)))
        case _:
            return min(domain.high, max(domain.low, wanted))


def _distance(one: Any, other: Any) -> float:
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) == len(other):
            return sum(_distance(a, b) for a, b in zip(one, other, strict=True))
        return math.inf
    if one == other:
        return 0.0
    known = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (one, other))
    return abs(math.log(one / other)) if known and one > 0 and other > 0 else math.inf


def contains(space: Space, values: Mapping[str, Any]) -> bool:
    """Whether `values` is a point of the space: each name once, and what its domain allows.

    >>> contains({"lr": Uniform(0.1, 1.0)}, {"lr": 0.5}), contains({"lr": Uniform(0.1, 1.0)}, {"lr": 2.0})
    (True, False)
    """
    return values.keys() == space.keys() and all(_holds(space[k], v) for k, v in values.items())


def _holds(domain: Domain, value: Any) -> bool:
    match domain:
        case Fixed(known):
            return json.dumps(value) == json.dumps(known)
        case Choice(options):
            return json.dumps(value) in map(json.dumps, options)
        case Uniform(low, high):
            return isinstance(value, float) and low <= value <= high
        case IntUniform(low, high):
            return type(value) is int and low <= value <= high


@dataclass(frozen=True)
class Stopped:
    """A trial that was ended early."""

    value: float
    """Reached so far."""
    passes: int
    """Validation passes that were made."""


Direction = Literal["maximize", "minimize"]
Value = float | Sequence[float] | Stopped | None
"""What a search is told of a trial: its score (one per direction), or that it was stopped; None: failed."""


class TpeSearch:
    """Optuna's TPE over a space; one score per direction.

    Results are told in order and exactly up to number i - lag before ask i, the others count as
    running, however many are known by then: the sequence does not depend on timing. `starts` are the
    first points; without any the first is drawn as the others are. `earlier` are points whose values are
    known before the first ask; they count toward TPE's start-up trials, those without a value do not.
    Points that are on record are taken as they are and cost nothing until TPE has something new to propose.
    """

    def __init__(
        self,
        space: Space,
        *,
        trials: int,
        lag: int,
        starts: Sequence[Mapping[str, Any]] = (),
        earlier: Sequence[tuple[Mapping[str, Any], Value]] = (),
        directions: Sequence[Direction] = ("maximize",),
    ) -> None:
        self.lag = lag
        self._silent = optuna.samplers.RandomSampler(seed=0)
        self.study = optuna.create_study(directions=directions, sampler=self._silent)
        self._starts = starts
        self._space = space
        self._distributions = distributions(space)
        known = [self._finished(values, value) for values, value in earlier]
        self.study.add_trials([trial for trial in known if trial is not None])
        self._startup = min(MOST_STARTUP_TRIALS, max(1, trials // 2))
        self._recorded: list[Mapping[str, Any]] = []
        """Points on record that Optuna does not know yet."""
        self._trials: list[optuna.Trial] = []
        self._told = 0

    def ask(
        self,
        value: Callable[[int], Value],
        *,
        seed: int,
        recorded: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The next point. `value` gives what came of a trial by its number; `recorded` is what this ask
        has given before, if it was ever made."""
        if recorded is not None:
            self._recorded.append(recorded)
            return dict(recorded)
        for values in self._recorded:
            self._begin(values)
        self._recorded.clear()
        while self._told <= len(self._trials) - self.lag:
            self._tell(self._trials[self._told], value(self._told))
            self._told += 1
        if len(self._trials) < len(self._starts):
            trial = self._begin(self._starts[len(self._trials)])
        else:
            self.study.sampler = optuna.samplers.TPESampler(
                seed=seed % 2**32, n_startup_trials=self._startup
            )
            trial = self._begin()
        return decode(self._space, trial.params)

    def _begin(self, values: Mapping[str, Any] | None = None) -> optuna.Trial:
        """A new trial: of `values`, which asks no sampler for anything, or as the sampler proposes."""
        if values is not None:
            self.study.sampler = self._silent
            self.study.enqueue_trial(encode(self._space, values))
        self._trials.append(self.study.ask(fixed_distributions=self._distributions))
        return self._trials[-1]

    def _tell(self, trial: optuna.Trial, value: Value) -> None:
        if isinstance(value, Stopped):
            trial.report(value.value, step=value.passes)
            self.study.tell(trial, state=TrialState.PRUNED)
        elif (known := self._known(value)) is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, known)

    def _finished(self, values: Mapping[str, Any], value: Value) -> FrozenTrial | None:
        """An earlier trial as Optuna keeps its own; None for a failure, of which TPE learns nothing."""
        what: dict[str, Any]
        if isinstance(value, Stopped):
            what = {"state": TrialState.PRUNED, "intermediate_values": {value.passes: value.value}}
        elif known := self._known(value):
            what = {"values": known}
        else:
            return None
        params = encode(self._space, values)
        return create_trial(params=params, distributions=self._distributions, **what)

    def _known(self, value: float | Sequence[float] | None) -> list[float] | None:
        """One finite value per direction; None for a failure: Optuna would take inf for a result."""
        values = [value] if value is None or isinstance(value, (int, float)) else value
        known = [v for v in values if v is not None and math.isfinite(v)]
        return known if len(known) == len(self.study.directions) else None
