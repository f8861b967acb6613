from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from aim_tune.spec.study import Recipe
from aim_tune.training.schedules import (
    evaluation_steps,
    learning_rate,
    passes_without_gain,
    plateau_factor,
    total_steps,
)


@pytest.mark.parametrize("total", [3, 7, 10, 33, 100, 300])
def test_one_cycle_equals_torchs(total: int) -> None:
    recipe = Recipe(steps=total, lr=0.03, schedule="one_cycle")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.03, total_steps=total, pct_start=0.3, cycle_momentum=False
    )
    for step in range(total):
        expected = optimizer.param_groups[0]["lr"]
        if total > 3:  # below 4 steps there is no rising part; torch extrapolates
            assert learning_rate(recipe, step, total) == pytest.approx(expected, rel=1e-9), step
        optimizer.step()
        if step + 1 < total:
            reference.step()


def test_one_cycle_at_known_points() -> None:
    recipe = Recipe(steps=300, lr=1.0)
    rates = [learning_rate(recipe, step, 300) for step in range(300)]
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[89] == pytest.approx(1.0)  # 30 % of 300 steps
    assert rates[299] == pytest.approx(1 / 250_000)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_very_few_steps_stays_between_zero_and_the_peak(total: int) -> None:
    recipe = Recipe(steps=total, lr=2.0)
    assert all(0 < learning_rate(recipe, step, total) <= 2.0 for step in range(total))


def test_cosine_falls_from_the_peak_to_nearly_zero() -> None:
    recipe = Recipe(steps=100, lr=0.4, schedule="cosine")
    rates = [learning_rate(recipe, step, 100) for step in (0, 50, 99)]
    assert rates == pytest.approx([0.4, 0.2, 0.4 * 0.000246719817], rel=1e-6)


def test_constant_is_constant() -> None:
    assert learning_rate(Recipe(steps=9, lr=0.1, schedule="constant"), 5, 9) == 0.1


@pytest.mark.parametrize(
    ("accuracies", "factor"),
    [
        ([], 1.0),
        ([0.5, 0.5, 0.5], 1.0),
        ([0.5, 0.5, 0.5, 0.5], 0.1),
        ([0.5, 0.4, 0.4, 0.6, 0.6, 0.6], 1.0),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4], 0.01),
    ],
)
def test_plateau_cuts_after_three_evaluations_without_gain(
    accuracies: list[float], factor: float
) -> None:
    assert plateau_factor(accuracies) == pytest.approx(factor)
    recipe = Recipe(steps=9, lr=2.0, schedule="plateau")
    assert learning_rate(recipe, 3, 9, accuracies) == pytest.approx(2.0 * factor)


def test_an_unknown_schedule_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'stairs' is none of one_cycle, cosine"):
        learning_rate(Recipe(steps=1, schedule="stairs"), 0, 1)


@pytest.mark.parametrize(
    ("recipe", "images", "steps"),
    [
        (Recipe(steps=300), 200, 300),
        (Recipe(epochs=1, batch_size=32), 200, 6),
        (Recipe(epochs=16, batch_size=32), 200, 100),
        (Recipe(epochs=1, batch_size=512), 200, 1),
    ],
)
def test_steps_and_epochs_become_steps(recipe: Recipe, images: int, steps: int) -> None:
    assert total_steps(recipe, images) == steps


@pytest.mark.parametrize(("total", "asked"), [(300, 10), (7, 3), (5, 10), (1, 1), (1000, 7)])
def test_evaluations_are_even_distinct_and_end_at_the_last_step(total: int, asked: int) -> None:
    steps = evaluation_steps(total, asked)
    assert steps[-1] == total
    assert len(set(steps)) == len(steps) == min(total, asked)
    gaps = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_schedules_import_no_torch() -> None:
    code = "import sys, aim_tune.training.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("accuracies", "min_delta", "expected"),
    [
        ([], 0.0, 0),
        ([0.5], 0.0, 0),
        ([0.5, 0.5], 0.0, 1),
        ([0.5, 0.6, 0.6, 0.59], 0.0, 2),
        (
            [0.5, 0.5009, 0.5018],
            0.001,
            0,
        ),  # small gains add up: 0.5018 is more than 0.001 above 0.5
        ([0.5, 0.5009, 0.5009], 0.001, 2),
        ([0.5, 0.4, 0.7], 0.001, 0),
    ],
)
def test_passes_are_counted_since_the_last_gain_that_counts(
    accuracies: list[float], min_delta: float, expected: int
) -> None:
    assert passes_without_gain(accuracies, min_delta) == expected
