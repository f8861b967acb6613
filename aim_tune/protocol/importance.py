"""Which settings mattered, per arm: Optuna's fANOVA (or, asked for, PED-ANOVA) over the recorded trainings.

fANOVA (Hutter et al. 2014) fits a random forest to the scores and gives each setting the share of
their variance that it alone explains. PED-ANOVA (Watanabe et al. 2023) asks how the best tenth differs from
the rest; it was measured against fANOVA and is not the default: where one choice of three options alone
decided the score, it put that first in 0 to 4 of 12 TPE searches of 24 or 60 trials (target quantiles 0.1
and 0.25), fANOVA in 12; and the add-on's settings are choices.
A setting counts in the stage in which it varied: the add-on's in explore where there was one, all
others over the twins of all blocks. Whiskers are the range when one block (or a sixth of the trials)
is left out: how much the answer hangs on few trainings, not a confidence interval. Scores are not
adjusted for the blocks' splits; a training that was stopped early counts with what it reached.
Of more than MOST_WEIGHED trainings every second or third block, or trial, is looked at: of 10,000 TPE draws
all, 4,000, 2,000 and 1,000 gave the same first setting and shares within 0.09.
Descriptive only: no claim rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, create_trial

from aim_tune.ledger import History, Training
from aim_tune.protocol.sampling import Space, distributions, encode, varies
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.amounts import MOST_WEIGHED
from aim_tune.stats.narrow import block_ranges

LEAST_TRIALS = 10
"""Below so many trainings nothing is said."""
FOLDS = 6
"""Most parts of which one is left out for the whiskers."""
TREES, DEPTH = 16, 5
"""Of each forest: within 0.02 of the shares of 64 unlimited trees at an eighth to a quarter of
the time (24 to 60 trials), and 0.07 s for 600."""


Explained = Callable[[optuna.Study, list[str]], dict[str, float]]
"""Share of the scores' variance that each setting explains, from a study's trials."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Trainings of one stage."""

    rows: list[Training]
    space: Space
    """Everything that varied in it."""
    judged: frozenset[str]
    """Settings whose importance is read from it."""

    def without(self, fold: int, folds: int) -> Part:
        """This part with one fold of `folds` left out; whole where it is a single block."""
        groups = self.groups
        out = set(groups[fold::folds] if len(groups) > 1 else ())
        return replace(self, rows=[t for t in self.rows if _group(t) not in out])

    @property
    def groups(self) -> list[int]:
        """What is left out together, in order."""
        return sorted({_group(t) for t in self.rows})


def importances(
    study: Study, history: History, method: str = "fANOVA"
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Arm -> setting -> (mean, low, high): its share of what all settings explain, largest first.

    The shares of an arm sum to 1. An arm with fewer than LEAST_TRIALS scored trainings, or a setting
    that never varied, is left out. `method` is one of METHODS.
    """
    found = {arm: _of_arm(study, history, arm, METHODS[method]) for arm in study.arms}
    return {arm: shares for arm, shares in found.items() if shares}


def _of_arm(
    study: Study, history: History, arm: str, explained: Explained
) -> dict[str, tuple[float, float, float]]:
    parts = [part for part in _parts(study, history, arm) if part.rows and part.judged]
    if not parts:
        return {}
    folds = min(FOLDS, max(len(part.groups) for part in parts))
    each = [
        _shares([part.without(fold, folds) for part in parts], explained) for fold in range(folds)
    ]
    shares = {}
    for name in each[0]:
        values = [one[name] for one in each]
        shares[name] = (fmean(values), min(values), max(values))
    return dict(sorted(shares.items(), key=lambda item: -item[1][0]))


def _parts(study: Study, history: History, arm: str) -> list[Part]:
    """Which trainings judge which settings."""
    explore, twins = _scored(history, "explore", arm), _scored(history, "twin", arm)
    ranges = block_ranges(study, history)
    shared = {name: domain for name, domain in study.shared.items() if varies(domain)}
    drawn = {name: domain for name, domain in ranges.items() if varies(domain)}
    space = study.addon.space if study.addon and arm != BASELINE else {}
    addon = {name: domain for name, domain in space.items() if varies(domain)}
    both = {**shared, **addon}
    if not study.protocol.explore.trials:
        return [Part(rows=twins, space=both, judged=frozenset(both))]
    if not twins:
        return [Part(rows=explore, space=both, judged=frozenset(both))]
    return [  # all blocks use the one design that explore chose
        Part(rows=twins, space=drawn, judged=frozenset(drawn)),
        Part(rows=explore, space=both, judged=frozenset(addon)),
    ]


def _scored(history: History, stage: str, arm: str) -> list[Training]:
    """Trainings of their own with a score; none if they are too few."""
    rows = [t for t in history.rows(stage, arm) if t.score is not None and t.reused_from is None]
    return _thinned(rows) if len(rows) >= LEAST_TRIALS else []


def _thinned(rows: list[Training]) -> list[Training]:
    """Whole blocks, or trials, evenly over the study, so that about MOST_WEIGHED trainings are left."""
    step = -(-len(rows) // MOST_WEIGHED)
    groups = sorted({_group(t) for t in rows})
    kept = set(groups[::step])
    return [t for t in rows if _group(t) in kept]


def _group(training: Training) -> int:
    """What is left out together: a block's twins, or explore trials one by one."""
    return training.index if training.block is None else training.block


def _shares(parts: Sequence[Part], explained: Explained) -> dict[str, float]:
    """Importance per setting, summing to 1 (all 0 where no setting matters)."""
    raw = {name: value for part in parts for name, value in _explained(part, explained).items()}
    total = sum(raw.values())
    return {name: value / total if total else 0.0 for name, value in raw.items()}


def _explained(part: Part, explained: Explained) -> dict[str, float]:
    """Variance of the score that each judged setting explains; 0 where all scores are equal."""
    scores = [t.score or 0.0 for t in part.rows]
    variance = float(np.var(scores))
    if min(scores) == max(scores):  # of twelve times 0.1 numpy's variance is not 0
        return dict.fromkeys(sorted(part.judged), 0.0)
    known = distributions(part.space)
    study = optuna.create_study(direction="maximize")
    study.add_trials([_trial(t, part.space, known) for t in part.rows])
    shares = explained(study, list(known))
    return {name: float(shares[name]) * variance for name in sorted(part.judged)}


def _fanova(study: optuna.Study, params: list[str]) -> dict[str, float]:
    forest = FanovaImportanceEvaluator(n_trees=TREES, max_depth=DEPTH, seed=0)
    return forest.evaluate(study, params=params)


def _ped_anova(study: optuna.Study, params: list[str]) -> dict[str, float]:
    """Divergences, scaled to sum to 1 so that two stages can be weighed against each other."""
    found = PedAnovaImportanceEvaluator().evaluate(study, params=params)
    total = sum(found.values())
    return {name: value / total if total else 0.0 for name, value in found.items()}


METHODS: Mapping[str, Explained] = {"fANOVA": _fanova, "PED-ANOVA": _ped_anova}
"""What `importances` can be asked for."""


def _trial(training: Training, space: Space, known: Mapping[str, BaseDistribution]) -> FrozenTrial:
    values = {**training.point.shared, **training.point.addon}
    params = encode({name: space[name] for name in known}, values)
    return create_trial(params=params, distributions=dict(known), value=training.score)
