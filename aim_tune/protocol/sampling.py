"""How domains are sampled: seeded uniform draws (numpy) and Optuna's TPE behind a fixed lag.

A space is a mapping name -> Domain; its names are taken in sorted order, so that a study file with
reordered keys asks for the same points. Choices reach Optuna as JSON text (its categories may not be
lists). Every TPE proposal uses a fresh sampler with its own seed: with the same results told before
the same ask, the proposal is the same, in whatever process. Values are plain JSON values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState

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


class TpeSearch:
    """Optuna's TPE over a space, maximizing.

    Results are told in order and exactly up to number i - lag before ask i, the others count as
    running, however many are known by then: the sequence does not depend on timing.
    """

    def __init__(self, space: Space, *, trials: int, lag: int, start_at_middle: bool) -> None:
        self.lag = lag
        self.study = optuna.create_study(
            direction="maximize",
            sampler=optuna.samplers.RandomSampler(seed=0),  # replaced at every ask
        )
        if start_at_middle:
            self.study.enqueue_trial(encode(space, middle(space)))
        self._space = space
        self._distributions = distributions(space)
        self._startup = min(MOST_STARTUP_TRIALS, max(1, trials // 2))
        self._asked = 0
        self._told = 0

    def ask(self, score: Callable[[int], float | None], *, seed: int) -> dict[str, Any]:
        """The next point. `score` gives a trial's score by its number, None where it failed."""
        while self._told <= self._asked - self.lag:
            self._tell(self._told, score(self._told))
            self._told += 1
        self.study.sampler = optuna.samplers.TPESampler(
            seed=seed % 2**32, n_startup_trials=self._startup
        )
        trial = self.study.ask(fixed_distributions=self._distributions)
        self._asked += 1
        return decode(self._space, trial.params)

    def _tell(self, number: int, score: float | None) -> None:
        """NaN and inf are failures: Optuna would take inf for a result."""
        if score is None or not math.isfinite(score):
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, score)
