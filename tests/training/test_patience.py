"""Early stopping on validation: the network keeps the weights of its best pass, and its score."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from aim_tune.data.source import Source
from aim_tune.spec.study import Recipe
from aim_tune.training.checkpoints import CheckpointSlot
from aim_tune.training.evaluate import validate
from aim_tune.training.loop import weights_sha256

NOISY = Recipe(steps=60, batch_size=8, lr=0.1, schedule="constant", evaluations=20)


def waiting(passes: int) -> Recipe:
    """The recipe with early stopping."""
    return NOISY.at({"early_stopping_patience": passes})


class Killed(Exception):
    """The process dies here."""


def test_a_training_without_gain_ends_with_the_weights_of_its_best_pass(
    train: Callable, source: Source
) -> None:
    whole = train(NOISY)
    scores = [m.val_accuracy for m in whole.measures]
    trained = train(waiting(2))
    ended = next(
        k for k in range(2, 20) if scores.index(max(scores[: k + 1])) <= k - 2 or k == 19
    )  # by hand: the first pass whose two predecessors brought nothing new
    best = max(scores[: ended + 1])
    assert ended < 19, "the example has to end early"
    assert trained.scores() == whole.scores()[: ended + 1]  # patience changes nothing before
    outcome = trained.outcome
    assert (outcome.status, outcome.steps) == ("ok", 3 * (ended + 1))
    assert outcome.val_accuracy == best
    assert f"ended at step {outcome.steps}: 2 passes without a gain" in outcome.detail
    accuracy = validate(
        trained.model, source, source.split(1).val, recipe=NOISY, device=torch.device("cpu")
    )[1]
    assert accuracy == best


def test_patience_that_is_never_over_still_keeps_the_best_weights(train: Callable) -> None:
    trained = train(waiting(100))
    scores = [m.val_accuracy for m in trained.measures]
    best = 3 * (scores.index(max(scores)) + 1)
    assert trained.outcome.steps == 60
    assert best < 60, "the example's last pass must not be the first best one"
    assert trained.outcome.val_accuracy == max(scores)
    assert f"weights of step {best}, the best of 20 passes" in trained.outcome.detail
    until_then = train(NOISY.at({"steps": best, "evaluations": best // 3}))  # the rate is constant
    assert weights_sha256(trained.model) == weights_sha256(until_then.model)


@pytest.mark.parametrize("patience", [2, 100])
def test_a_resumed_training_with_patience_gives_the_same_bits(
    train: Callable, slot: Callable[[int], CheckpointSlot], patience: int
) -> None:
    def dies(measure: object) -> None:
        if measure.step >= 9:  # type: ignore[attr-defined]
            raise Killed

    whole = train(waiting(patience))
    with pytest.raises(Killed):
        train(waiting(patience), slot=slot(1), checkpoint_s=0.0, on_measure=dies)
    again = train(waiting(patience), slot=slot(2), checkpoint_s=0.0)
    assert "resumed at step" in again.outcome.detail
    assert weights_sha256(again.model) == weights_sha256(whole.model)
    assert again.scores() == whole.scores()
