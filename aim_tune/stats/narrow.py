"""Which part of each shared range was good for some arm: where the blocks draw from after explore.

For each arm by its own score, the best quarter of its explore trials is good; the range of a setting
then goes from the least to the largest value that was good for any arm, and a tenth of the whole range
further on both sides. A choice keeps what was good for some arm and what was hardly tried. Trainings
that failed or were stopped early are never good. Pure: the same trials give the same ranges, in the
protocol that draws from them and in the report that shows them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aim_tune.ledger import History
from aim_tune.spec.space import Choice, Domain, IntUniform, Uniform
from aim_tune.spec.study import Study
from aim_tune.spec.values import canonical

LEAST_TRIALS = 20
"""Different trials below which nothing is narrowed."""
GOOD_SHARE = 0.25
MARGIN = 0.1
"""Of the range (of its logarithm where it is logarithmic), added on both sides."""
HARDLY_TRIED = 3
"""An option tried less often than this is kept: a bad score may be the other settings'."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One explore trial."""

    shared: Mapping[str, Any]
    scores: Mapping[str, float | None]
    """Per arm; None where the training failed or was stopped early."""
    repeat: bool = False
    """Whether it repeats an earlier trial and so says nothing new."""


def narrowed(shared: Mapping[str, Domain], trials: Sequence[Trial]) -> dict[str, Domain]:
    """The domains to go on with; the same ones where there are too few trials.

    >>> lr = Uniform(1e-4, 1.0, log=True)
    >>> trials = [Trial(shared={"lr": 10**(-i / 10)}, scores={"aim": -abs(i - 20)}) for i in range(40)]
    >>> found = narrowed({"lr": lr}, trials)["lr"]
    >>> f"{found.low:.2g} to {found.high:.2g}"
    '0.0013 to 0.079'
    """
    own = [trial for trial in trials if not trial.repeat]
    good = _good(own)
    if len(own) < LEAST_TRIALS or not good:
        return dict(shared)
    return {name: _narrow(domain, name, own, good) for name, domain in shared.items()}


def block_ranges(study: Study, history: History) -> dict[str, Domain]:
    """The shared domains that the blocks of a recorded study draw from."""
    explore = study.protocol.explore
    if not explore.narrow:
        return dict(study.shared)
    trials = recorded_trials(history, explore.trials)
    return narrowed(study.shared, trials) if len(trials) == explore.trials else dict(study.shared)


def recorded_trials(history: History, trials: int) -> list[Trial]:
    """The finished ones of the first `trials` explore requests; finalists are re-runs, not trials."""
    positions = [f"explore/{number}" for number in range(trials)]
    return [_recorded(history, p) for p in positions if p in history.done]


def _recorded(history: History, position: str) -> Trial:
    rows = history.of(position)
    return Trial(
        shared=rows[0].point.shared,
        scores={t.arm: None if t.status == "pruned" else t.score for t in rows},
        repeat=rows[0].reused_from is not None,
    )


def _good(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are among the best of some arm."""
    count = math.ceil(GOOD_SHARE * len(trials))
    found: dict[int, Trial] = {}
    for arm in trials[0].scores if trials else ():
        scored = [(t.scores[arm], i) for i, t in enumerate(trials)]
        best = sorted((-score, i) for score, i in scored if score is not None)[:count]
        found |= {i: trials[i] for _, i in best}
    return list(found.values())


def _narrow(domain: Domain, name: str, trials: Sequence[Trial], good: Sequence[Trial]) -> Domain:
    values = [trial.shared[name] for trial in good]
    match domain:
        case Choice(options):
            kept = {canonical(value) for value in values}
            tried = [canonical(trial.shared[name]) for trial in trials]
            return Choice(
                tuple(o for o in options if canonical(o) in kept
                      or tried.count(canonical(o)) < HARDLY_TRIED)
            )  # fmt: skip
        case Uniform() | IntUniform():
            low, high = _widened(domain, min(values), max(values))
            if isinstance(domain, IntUniform):
                return IntUniform(math.floor(low), math.ceil(high), log=domain.log)
            return Uniform(low, high, log=domain.log)
    return domain


def _widened(domain: Uniform | IntUniform, low: float, high: float) -> tuple[float, float]:
    """`low` and `high` moved apart by the margin, but not beyond the range."""
    first, last = float(domain.low), float(domain.high)
    if domain.log:
        factor = (last / first) ** MARGIN
        return max(first, low / factor), min(last, high * factor)
    step = MARGIN * (last - first)
    return max(first, low - step), min(last, high + step)
