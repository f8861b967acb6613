"""How many steps, when to validate, and the learning rate of each step: pure functions. Imports no torch.

Formulas: one-cycle as torch's OneCycleLR with cosine annealing (Smith and Topin 2018); cosine to zero
(Loshchilov and Hutter 2017, no restarts); plateau multiplies by 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aim_tune.spec.study import Recipe

WARM_UP = 0.3  # share of the steps in which one-cycle rises
START_DIVISOR = 25.0  # one-cycle starts at lr / 25
END_DIVISOR = 1e4  # and ends at that / 10,000
PLATEAU_PATIENCE = 3  # evaluations without gain
PLATEAU_FACTOR = 0.1


def total_steps(recipe: Recipe, train_images: int) -> int:
    """Optimizer steps of a training; epochs are counted in images, so none is dropped.

    >>> total_steps(Recipe(epochs=3, batch_size=32), 200)
    19
    """
    if recipe.steps is not None:
        return recipe.steps
    return max(1, round((recipe.epochs or 0) * train_images / recipe.batch_size))


def evaluation_steps(total: int, evaluations: int) -> list[int]:
    """The steps after which validation is done: evenly spread, the last one is the last step.

    >>> evaluation_steps(300, 4)
    [75, 150, 225, 300]
    """
    count = max(1, min(evaluations, total))
    return [math.ceil((k + 1) * total / count) for k in range(count)]


def learning_rate(
    recipe: Recipe, step: int, total: int, val_accuracies: Sequence[float] = ()
) -> float:
    """The learning rate of step `step`; 0 is the first of `total`; plateau looks at the accuracies so far."""
    match recipe.schedule:
        case "one_cycle":
            return recipe.lr * _one_cycle(step, total)
        case "cosine":
            return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * step / total))
        case "plateau":
            return recipe.lr * plateau_factor(val_accuracies)
        case "constant":
            return recipe.lr
    raise ValueError(
        f"recipe.schedule: {recipe.schedule!r} is none of one_cycle, cosine, plateau, constant"
    )


def _one_cycle(step: int, total: int) -> float:
    """Share of the peak: 1/25 up to 1 over the first 30 %, then down to 1/250,000."""
    start, end = 1.0 / START_DIVISOR, 1.0 / START_DIVISOR / END_DIVISOR
    peak = WARM_UP * total - 1.0
    if step <= peak:
        return _cosine_between(start, 1.0, step / peak if peak > 0 else 1.0)
    rest = total - 1.0 - max(peak, 0.0)
    return _cosine_between(1.0, end, (step - max(peak, 0.0)) / rest if rest > 0 else 0.0)


def _cosine_between(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2.0 * (1.0 + math.cos(math.pi * share))


def plateau_factor(val_accuracies: Sequence[float]) -> float:
    """0.1 to the power of how often three evaluations in a row brought no gain.

    >>> plateau_factor([0.5, 0.6, 0.6, 0.55, 0.6])
    0.1
    """
    best, waited, cuts = -math.inf, 0, 0
    for accuracy in val_accuracies:
        waited = 0 if accuracy > best else waited + 1
        best = max(best, accuracy)
        if waited == PLATEAU_PATIENCE:
            cuts, waited = cuts + 1, 0
    return PLATEAU_FACTOR**cuts


def passes_without_gain(val_accuracies: Sequence[float], min_delta: float = 0.0) -> int:
    """Validation passes since the last that was better than all before by more than `min_delta`.

    >>> passes_without_gain([0.5, 0.6, 0.6005, 0.59], min_delta=0.001)
    2
    """
    best, waited = -math.inf, 0
    for accuracy in val_accuracies:
        waited += 1
        if accuracy > best + min_delta:
            best, waited = accuracy, 0
    return waited
