from __future__ import annotations

import pytest
import torch

from aim_tune.training.batches import Batches, augment, crop, cutout, flip, generator


def batches(start: int = 0, *, order: int = 3, size: int = 8, images: int = 20) -> Batches:
    return Batches(
        torch.arange(100, 100 + images), batch_size=size, order=order, start=start, total=30
    )


def test_every_epoch_shows_every_image_once() -> None:
    shown = torch.cat(list(batches()))[: 20 * 12]
    for epoch in shown.split(20):
        assert sorted(epoch.tolist()) == list(range(100, 120))
    assert not torch.equal(shown[:20], shown[20:40])


def test_a_later_start_gives_the_same_remaining_batches() -> None:
    whole, rest = list(batches()), list(batches(start=13))
    assert len(rest) == 17
    assert all(torch.equal(a, b) for a, b in zip(whole[13:], rest, strict=True))


def test_the_order_belongs_to_its_stream() -> None:
    assert not torch.equal(batches()[0], batches(order=4)[0])


def test_batches_larger_than_the_set_are_full() -> None:
    batch = batches(size=50)[0]
    assert len(batch) == 50
    assert set(batch.tolist()) == set(range(100, 120))


RAMP = torch.arange(2 * 16 * 16, dtype=torch.float32).view(1, 2, 16, 16).repeat(64, 1, 1, 1) + 1


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    flipped = flip(RAMP, generator(0, 0))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, RAMP, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, RAMP, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_crop_shifts_each_image_as_a_whole_by_up_to_an_eighth() -> None:
    allowed = {(dy, dx): shifted(RAMP[0], dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for image in crop(RAMP, generator(0, 0)):
        found = [shift for shift, expected in allowed.items() if torch.equal(image, expected)]
        assert len(found) == 1
        seen.update(found)
    assert {dy for dy, _ in seen} == {dx for _, dx in seen} == {-2, -1, 0, 1, 2}


def shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Down by dy and right by dx, zeros moving in: the plain way."""
    moved = torch.zeros_like(image)
    for y in range(16):
        for x in range(16):
            if 0 <= y - dy < 16 and 0 <= x - dx < 16:
                moved[:, y, x] = image[:, y - dy, x - dx]
    return moved


def test_cutout_clears_one_square_of_a_quarter_of_the_side() -> None:
    cleared = cutout(RAMP, generator(0, 0)) == 0
    assert torch.equal(cleared[:, 0], cleared[:, 1])
    assert set(cleared[:, 0].sum((1, 2)).tolist()) == {16}
    assert set(cleared[:, 0].any(1).sum(1).tolist()) == {4}


def test_augmentation_is_a_function_of_stream_and_step() -> None:
    kinds = ("flip", "crop", "cutout")
    one = augment(RAMP, kinds, stream=5, step=9)
    assert torch.equal(one, augment(RAMP, kinds, stream=5, step=9))
    assert not torch.equal(one, augment(RAMP, kinds, stream=5, step=10))
    assert not torch.equal(one, augment(RAMP, kinds, stream=6, step=9))


def test_adding_a_kind_does_not_change_the_draws_of_another() -> None:
    flipped = augment(RAMP, ("flip",), stream=5, step=9)
    both = augment(RAMP, ("cutout", "flip"), stream=5, step=9)
    untouched = both != 0
    assert torch.equal(both[untouched], flipped[untouched])


@pytest.mark.parametrize("side", [1, 3, 8])
def test_small_images_survive_all_kinds(side: int) -> None:
    images = torch.ones(4, 1, side, side)
    assert augment(images, ("flip", "crop", "cutout"), stream=0, step=0).shape == images.shape


def test_nothing_asked_changes_nothing() -> None:
    assert augment(RAMP, (), stream=0, step=0) is RAMP
