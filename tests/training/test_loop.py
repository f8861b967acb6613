from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_tune.data.source import Source
from aim_tune.ledger import Measure
from aim_tune.spec.study import Recipe
from aim_tune.training.checkpoints import CheckpointSlot
from aim_tune.training.evaluate import validate
from aim_tune.training.loop import fit, weights_sha256
from aim_tune.training.schedules import passes_without_gain

CPU = torch.device("cpu")
FULL = Recipe(
    steps=40, batch_size=16, lr=0.01, weight_decay=0.01, augment=("flip", "crop", "cutout"),
    evaluations=8, label_smoothing=0.1, grad_clip=1.0,
)  # fmt: skip


def with_(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.at(changes)


class After(nn.Module):
    """A linear network that does something special at its n-th training step."""

    def __init__(self, special: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        nn.init.zeros_(self.inner[1].weight)
        nn.init.zeros_(self.inner[1].bias)
        self.special, self.at, self.calls = special, at, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        logits = self.inner(images)
        return self.special(logits) if self.training and self.calls >= self.at else logits


def test_a_network_learns_and_every_pass_is_reported(train: Callable) -> None:
    trained = train(Recipe(steps=100, lr=0.02, evaluations=5))
    assert [m.step for m in trained.measures] == [20, 40, 60, 80, 100]
    assert trained.measures[-1].train_loss < 0.7 * trained.measures[0].train_loss
    outcome = trained.outcome
    assert (outcome.status, outcome.detail, outcome.steps, outcome.allotted_steps) == (
        "ok", "", 100, 100,
    )  # fmt: skip
    assert outcome.val_accuracy == trained.measures[-1].val_accuracy > 0.6
    assert outcome.val_best == max(m.val_accuracy for m in trained.measures)
    assert outcome.peak_mib is None
    assert outcome.step_ms is not None
    assert 0 < outcome.step_ms * 100 / 1000 < 5 * outcome.seconds


def test_a_recipe_that_waits_for_gains_ends_early_and_keeps_its_best_network(
    train: Callable, source: Source
) -> None:
    waits = {"early_stopping_patience": 2, "early_stopping_min_delta": 0.02}
    recipe = with_(Recipe(steps=200, lr=0.02, evaluations=40), **waits)
    trained = train(recipe)
    scores = [m.val_accuracy for m in trained.measures]
    assert passes_without_gain(scores, 0.02) == 2
    assert all(passes_without_gain(scores[:i], 0.02) < 2 for i in range(1, len(scores)))
    outcome = trained.outcome
    assert outcome.steps == 5 * len(scores) < outcome.allotted_steps == 200
    assert outcome.status == "ok"
    assert outcome.detail.startswith(f"ended at step {outcome.steps}: 2 passes without a gain")
    assert outcome.val_accuracy == max(scores)
    split = source.split(1)
    again = validate(trained.model, source, split.val, recipe=recipe, device=CPU)[1]
    assert again == max(scores)


def test_without_patience_a_recipe_trains_to_its_last_step(train: Callable) -> None:
    plain = train(Recipe(steps=40, lr=0.02, evaluations=8))
    patient = train(with_(Recipe(steps=40, lr=0.02, evaluations=8), early_stopping_patience=8))
    assert plain.outcome.steps == patient.outcome.steps == 40
    assert plain.scores() == patient.scores()


def test_measures_hold_the_epoch_and_the_rate_of_their_step(train: Callable) -> None:
    trained = train(Recipe(epochs=2, batch_size=12, lr=0.3, schedule="cosine", evaluations=2))
    assert [m.epoch for m in trained.measures] == [1.0, 2.0]  # 96 training images
    assert trained.measures[0].lr == pytest.approx(0.3 * 0.5975451610080641)  # step 7 of 16


def test_the_reported_accuracy_is_that_of_the_returned_network(
    train: Callable, source: Source
) -> None:
    trained = train(FULL)
    loss, accuracy = validate(trained.model, source, source.split(1).val, recipe=FULL, device=CPU)
    assert (loss, accuracy) == (trained.measures[-1].val_loss, trained.measures[-1].val_accuracy)


def test_the_same_streams_give_the_same_bits_and_others_do_not(train: Callable) -> None:
    one, two = train(FULL), train(FULL)
    assert weights_sha256(one.model) == weights_sha256(two.model)
    assert one.scores() == two.scores()
    digests = {weights_sha256(one.model)}
    for stream in ("order", "augment", "dropout"):
        streams = {"order": 11, "augment": 12, "dropout": 13, stream: 99}
        digests.add(weights_sha256(train(FULL, streams=streams).model))
    assert len(digests) == 4


def test_the_global_random_state_is_neither_used_nor_changed(train: Callable) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = train(FULL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert weights_sha256(train(FULL).model) == weights_sha256(first.model)


class Killed(BaseException):
    """Stands for a SIGKILL."""


def killed_at(step: int) -> Callable[[Measure], None]:
    def on_measure(measure: Measure) -> None:
        if measure.step >= step:
            raise Killed

    return on_measure


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_resumed_training_gives_the_same_bits(
    train: Callable, slot: Callable[[int], CheckpointSlot],
    optimizer: str, schedule: str, channels_last: bool,
) -> None:  # fmt: skip
    recipe = with_(FULL, optimizer=optimizer, schedule=schedule, channels_last=channels_last)
    whole = train(recipe)
    with pytest.raises(Killed):
        train(recipe, slot=slot(1), checkpoint_s=0.0, on_measure=killed_at(25))
    again = train(recipe, slot=slot(2), checkpoint_s=1e9)
    assert "resumed at step 24" in again.outcome.detail
    assert weights_sha256(again.model) == weights_sha256(whole.model)
    assert again.scores() == whole.scores()  # earlier passes are reported once more
    assert (again.outcome.steps, again.outcome.status) == (40, "ok")


def test_a_damaged_checkpoint_costs_steps_but_changes_nothing_and_is_said(
    train: Callable, slot: Callable[[int], CheckpointSlot], tmp_path: Path
) -> None:
    whole = train(FULL)
    with pytest.raises(Killed):
        train(FULL, slot=slot(1), checkpoint_s=0.0, on_measure=killed_at(25))
    newest = max((tmp_path / "checkpoints").rglob("*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-7])
    again = train(FULL, slot=slot(2))
    assert "is damaged; the one before it is used; resumed at step 23" in again.outcome.detail
    assert weights_sha256(again.model) == weights_sha256(whole.model)


def test_a_checkpoint_of_another_recipe_is_not_used(
    train: Callable, slot: Callable[[int], CheckpointSlot]
) -> None:
    with pytest.raises(Killed):
        train(FULL, slot=slot(1), checkpoint_s=0.0, on_measure=killed_at(25))
    other = with_(FULL, lr=0.02)
    again = train(other, slot=slot(2))
    assert "a checkpoint of another training was found and not used" in again.outcome.detail
    assert weights_sha256(again.model) == weights_sha256(train(other).model)


def test_a_short_training_writes_no_checkpoint(
    train: Callable, slot: Callable[[int], CheckpointSlot], tmp_path: Path
) -> None:
    train(FULL, slot=slot(1), checkpoint_s=60.0)
    assert not (tmp_path / "checkpoints").exists()


def test_a_nan_loss_ends_as_diverged_with_the_score_and_weights_reached(
    train: Callable, source: Source
) -> None:
    model = After(lambda logits: logits * float("nan"), at=15)
    trained = train(Recipe(steps=40, lr=0.01, evaluations=4), model=model)
    outcome = trained.outcome
    assert (outcome.status, outcome.steps, outcome.allotted_steps) == ("diverged", 15, 40)
    assert "training loss became nan at step 15" in outcome.detail
    assert [m.step for m in trained.measures] == [10]
    assert outcome.val_accuracy == trained.measures[0].val_accuracy
    _, accuracy = validate(model, source, source.split(1).val, recipe=FULL, device=CPU)
    assert accuracy == outcome.val_accuracy


class Poisoned:
    """A source with one NaN pixel in one image, as a bad disk or a bad augmentation may give it."""

    def __init__(self, source: Source, step: int) -> None:
        self._source, self._step = source, step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def pool_batches(self, batches: Any, device: torch.device) -> Any:
        for step, (images, labels) in enumerate(self._source.pool_batches(batches, device), 1):
            if step == self._step:
                images = images.clone()
                images[3, 0, 4, 4] = float("nan")
            yield images, labels


def test_one_nan_pixel_among_good_images_ends_as_diverged_with_the_score_reached(
    source: Source,
) -> None:
    passes: list[Measure] = []
    outcome = fit(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        Poisoned(source, step=15),  # type: ignore[arg-type]
        split=source.split(1),
        recipe=Recipe(steps=40, batch_size=16, evaluations=4),
        streams={"order": 11, "augment": 12, "dropout": 13},
        device=CPU,
        on_measure=passes.append,
    )
    assert (outcome.status, outcome.steps) == ("diverged", 15)
    assert "training loss became nan at step 15" in outcome.detail
    assert [m.step for m in passes] == [10]
    assert outcome.val_accuracy == passes[0].val_accuracy


def test_a_training_that_diverges_before_its_first_pass_has_its_untrained_score(
    train: Callable,
) -> None:
    outcome = train(Recipe(steps=40, evaluations=4), model=After(torch.log, at=1)).outcome
    assert (outcome.status, outcome.steps) == ("diverged", 1)
    assert outcome.val_accuracy is not None
    assert 0.1 < outcome.val_accuracy < 0.6  # three classes, zero weights


def test_an_absurd_learning_rate_diverges(train: Callable) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    outcome = train(Recipe(steps=200, lr=1e6, optimizer="sgd"), model=model).outcome
    assert outcome.status == "diverged"


def test_out_of_memory_ends_as_oom_with_the_reason(train: Callable) -> None:
    def full(logits: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    outcome = train(Recipe(steps=40, evaluations=4), model=After(full, at=15)).outcome
    assert (outcome.status, outcome.steps) == ("oom", 14)
    assert outcome.detail == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert outcome.val_accuracy is not None


def test_a_real_cpu_allocation_failure_ends_as_oom(train: Callable) -> None:
    outcome = train(
        Recipe(steps=40, evaluations=4), model=After(lambda x: torch.empty(2**55) + x, at=3)
    ).outcome
    assert outcome.status == "oom"
    assert outcome.val_accuracy is None


def test_other_exceptions_propagate(train: Callable) -> None:
    def broken(logits: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(Recipe(steps=4), model=After(broken, at=2))


def test_a_time_limit_ends_as_timeout_with_the_score_reached(train: Callable) -> None:
    def slow(logits: Tensor) -> Tensor:
        time.sleep(0.02)
        return logits

    trained = train(Recipe(steps=1000, evaluations=500), model=After(slow, at=1), time_limit_s=0.2)
    assert trained.outcome.status == "timeout"
    assert "time limit of 0.2 s reached at step" in trained.outcome.detail
    assert trained.outcome.steps < 30
    assert trained.outcome.val_accuracy == trained.measures[-1].val_accuracy


def test_time_in_validation_and_reporting_is_not_training_time(train: Callable) -> None:
    trained = train(Recipe(steps=8, evaluations=8), on_measure=lambda _: time.sleep(0.05))
    assert trained.outcome.seconds < 0.2


@pytest.mark.parametrize("changes", [{"channels_last": True}, {"amp": True}])
def test_layout_and_precision_change_little(train: Callable, changes: dict[str, bool]) -> None:
    plain, other = train(with_(FULL, steps=5)), train(with_(FULL, steps=5, **changes))
    assert other.measures[-1].val_loss == pytest.approx(plain.measures[-1].val_loss, rel=0.03)
    assert weights_sha256(plain.model) != weights_sha256(other.model)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_asked_for_reaches_features_and_weights(
    source: Source, channels_last: bool
) -> None:
    seen = []

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 6)

        def forward(self, images: Tensor) -> Tensor:
            features = self.first(images)
            for tensor in (features, self.second.weight):
                seen.append(tensor.is_contiguous(memory_format=torch.channels_last))
            return self.second(features).flatten(1)

    fit(
        Looks(), source, split=source.split(1),
        recipe=Recipe(steps=2, channels_last=channels_last),
        streams={"order": 0, "augment": 0, "dropout": 0}, device=CPU, on_measure=lambda _: None,
    )  # fmt: skip
    assert set(seen) == {channels_last}


LADDERED = Recipe(steps=40, batch_size=16, lr=0.02, evaluations=4)


def test_a_training_below_a_rung_ends_as_pruned_with_the_score_and_weights_reached(
    train: Callable, source: Source
) -> None:
    whole = train(LADDERED)
    second = whole.measures[1].val_accuracy
    trained = train(LADDERED, stop=((1, 0.0), (2, second + 0.001)))
    outcome = trained.outcome
    assert (outcome.status, outcome.steps, outcome.allotted_steps) == ("pruned", 20, 40)
    assert outcome.detail == (
        f"validation accuracy {second:.4f} at step 20, {second + 0.001:.4f} was needed"
    )
    assert outcome.val_accuracy == second
    assert trained.scores() == whole.scores()[:2]  # the ladder changes nothing before it stops
    accuracy = validate(trained.model, source, source.split(1).val, recipe=LADDERED, device=CPU)[1]
    assert accuracy == second


@pytest.mark.parametrize(
    "rungs", [lambda m: ((2, m[1].val_accuracy),), lambda m: ((4, 1.1),), lambda m: ()],
    ids=["just good enough", "the last pass is no rung", "no ladder"],
)  # fmt: skip
def test_a_training_that_is_good_enough_is_the_training_without_a_ladder(
    train: Callable, rungs: Callable
) -> None:
    whole = train(LADDERED)
    again = train(LADDERED, stop=rungs(whole.measures))
    assert again.outcome.status == "ok"
    assert again.scores() == whole.scores()
    assert weights_sha256(again.model) == weights_sha256(whole.model)


def test_a_pruned_training_that_is_resumed_before_its_rung_ends_the_same(
    train: Callable, slot: Callable[[int], CheckpointSlot]
) -> None:
    stop = ((3, 1.1),)
    whole = train(LADDERED, stop=stop)
    with pytest.raises(Killed):
        train(LADDERED, stop=stop, slot=slot(1), checkpoint_s=0.0, on_measure=killed_at(20))
    again = train(LADDERED, stop=stop, slot=slot(2), checkpoint_s=0.0)
    assert again.outcome.status == whole.outcome.status == "pruned"
    assert again.scores() == whole.scores()
    assert weights_sha256(again.model) == weights_sha256(whole.model)
