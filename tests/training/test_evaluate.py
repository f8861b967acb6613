from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from aim_tune.data import sealed
from aim_tune.data.source import Source
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component, Recipe
from aim_tune.training.evaluate import evaluation_batch, predict_test, validate, weights_sha256

CPU = torch.device("cpu")
RECIPE = Recipe(steps=1, batch_size=4)


class Says(nn.Module):
    """Always the same logits."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


def test_loss_and_accuracy_of_a_network_that_always_says_the_same(source: Source) -> None:
    positions = torch.arange(90)  # labels are position % 3
    loss, accuracy = validate(Says([0.0, 1.0, 0.0]), source, positions, recipe=RECIPE, device=CPU)
    total = math.log(2 + math.e)
    assert accuracy == pytest.approx(1 / 3)
    assert loss == pytest.approx((total + (total - 1) + total) / 3)


def test_label_smoothing_does_not_touch_the_validation_loss(source: Source) -> None:
    smooth = Recipe(steps=1, batch_size=4, label_smoothing=0.5)
    positions = torch.arange(30)
    plain = validate(Says([0.0, 2.0, 0.0]), source, positions, recipe=RECIPE, device=CPU)
    assert validate(Says([0.0, 2.0, 0.0]), source, positions, recipe=smooth, device=CPU) == plain


def test_predictions_are_in_the_order_of_the_sealed_labels(
    source: Source, train: Callable, catalog: Catalog
) -> None:
    trained = train(Recipe(steps=60, lr=0.02))
    found = predict_test(trained.model, source, recipe=RECIPE, device=CPU)
    labels = torch.from_numpy(sealed.test_labels(Component(name="blobs"), catalog))
    assert (found == labels).float().mean() > 0.6  # chance is 1/3


def test_predicting_draws_no_random_number_and_changes_no_weight(
    source: Source, train: Callable
) -> None:
    model = train(Recipe(steps=2)).model
    before, state = weights_sha256(model), torch.get_rng_state()
    first = predict_test(model, source, recipe=RECIPE, device=CPU)
    assert torch.equal(first, predict_test(model, source, recipe=RECIPE, device=CPU))
    assert weights_sha256(model) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_batches_hold_about_a_million_values() -> None:
    assert evaluation_batch(Recipe(steps=1), (3, 16, 16)) == 128
    assert evaluation_batch(Recipe(steps=1), (3, 64, 64)) == 85
    assert evaluation_batch(Recipe(steps=1, batch_size=16), (3, 224, 224)) == 16


def test_the_weights_digest_sees_values_names_and_shapes_but_not_the_layout() -> None:
    def conv(fill: float = 0.5) -> nn.Conv2d:
        layer = nn.Conv2d(3, 4, 3, bias=False)
        nn.init.constant_(layer.weight, fill)
        layer.weight.data[0, 0, 0, 0] = 1.0
        return layer

    base = weights_sha256(conv())
    assert weights_sha256(conv().to(memory_format=torch.channels_last)) == base
    assert weights_sha256(conv(0.25)) != base
    assert weights_sha256(nn.Sequential(conv())) != base
