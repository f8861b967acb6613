"""One recipe, two ways: the loop's optimizer against formulas written out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aim_tune.data.source import Source
from aim_tune.errors import ResourceError
from aim_tune.spec.study import Recipe
from aim_tune.training.batches import Batches
from aim_tune.training.optimizers import make_optimizer
from aim_tune.training.schedules import learning_rate

STEPS = 25


def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double()


class InDouble(nn.Module):
    """float64 inside, so that the comparison is not about rounding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.double())


def by_hand(recipe: Recipe, source: Source, order: int) -> list[Tensor]:
    model = linear()
    weights = [p.detach().clone() for p in model.parameters()]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    batches = Batches(
        source.split(1).train, batch_size=recipe.batch_size, order=order, start=0, total=STEPS
    )
    for step, (images, labels) in enumerate(source.pool_batches(batches, torch.device("cpu"))):
        rate = learning_rate(recipe, step, STEPS)
        x = images.double().flatten(1)
        logits = (x @ weights[0].T + weights[1]).float().double()
        error = torch.softmax(logits, 1) - nn.functional.one_hot(labels, 3)
        gradients = [error.T @ x / len(x), error.mean(0)]
        if recipe.grad_clip is not None:
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            gradients = [g * min(1.0, recipe.grad_clip / (norm + 1e-6)) for g in gradients]
        for w, g, m, v in zip(weights, gradients, first, second, strict=True):
            UPDATES[recipe.optimizer](w, g, m, v, rate, recipe, step + 1)
    return weights


def adamw(
    w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, recipe: Recipe, count: int
) -> None:
    w.mul_(1 - lr * recipe.weight_decay)
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g * g)
    w.sub_(lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8))


def adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, recipe: Recipe, count: int) -> None:
    g = g + recipe.weight_decay * w
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.999).add_(0.001 * g * g)
    w.sub_(lr * (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8))


def sgd(w: Tensor, g: Tensor, m: Tensor, v: Tensor, lr: float, recipe: Recipe, count: int) -> None:
    g = g + recipe.weight_decay * w
    m.mul_(recipe.momentum).add_(g)
    w.sub_(lr * m)


UPDATES = {"adamw": adamw, "adam": adam, "sgd": sgd}


@pytest.mark.parametrize("grad_clip", [None, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_training_equals_the_formulas_written_out(
    source: Source, train: Callable, optimizer: str, grad_clip: float | None
) -> None:
    recipe = Recipe(
        steps=STEPS, batch_size=16, lr=0.02, weight_decay=0.1, optimizer=optimizer,
        schedule="one_cycle", grad_clip=grad_clip,
    )  # fmt: skip
    model = linear()
    train(recipe, model=InDouble(model))
    expected = by_hand(recipe, source, order=11)
    for found, wanted in zip(model.parameters(), expected, strict=True):
        # the loop's loss is taken in float32, hence not 1e-12
        assert torch.allclose(found, wanted, atol=2e-6), (found - wanted).abs().max()


def test_frozen_parameters_stay_as_they_are() -> None:
    model = linear()
    next(model.parameters()).requires_grad_(False)
    optimizer = make_optimizer(model, Recipe(steps=1))
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 3


def test_a_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ResourceError, match="no trainable parameter"):
        make_optimizer(nn.Flatten(), Recipe(steps=1))
