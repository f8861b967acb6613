from __future__ import annotations

import pytest
import torch

from aim_tune.spec.study import AUGMENTS
from aim_tune.spec.values import derive_seed
from aim_tune.training.batches import (
    Batches,
    Draw,
    augment,
    contrast,
    contrasted,
    crop,
    cutout,
    flip,
    flip_vertical,
    generator,
    rotated,
    translated,
)


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
    flipped = flip(RAMP, Draw(generator(0, 0)))
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(flipped, RAMP, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, RAMP, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_crop_shifts_each_image_as_a_whole_by_up_to_an_eighth() -> None:
    allowed = {(dy, dx): shifted(RAMP[0], dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)}
    seen = set()
    for image in crop(RAMP, Draw(generator(0, 0))):
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
    cleared = cutout(RAMP, Draw(generator(0, 0))) == 0
    assert torch.equal(cleared[:, 0], cleared[:, 1])
    assert set(cleared[:, 0].sum((1, 2)).tolist()) == {16}
    assert set(cleared[:, 0].any(1).sum(1).tolist()) == {4}


def test_flip_vertical_turns_about_half_of_the_images_upside_down() -> None:
    flipped = flip_vertical(RAMP, Draw(generator(0, 0)))
    turned = [torch.equal(a, b.flip(1)) for a, b in zip(flipped, RAMP, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, RAMP, strict=True)]
    assert all(t != s for t, s in zip(turned, same, strict=True))
    assert 20 <= sum(turned) <= 44


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 1, 5, 5)])
def test_quarter_turns_are_exact_and_counterclockwise(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape, generator=generator(0, 0))
    turned = rotated(images, torch.tensor([0.25, 0.5]))
    torch.testing.assert_close(turned[0], images[0].rot90(1, (1, 2)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned[1], images[1].rot90(2, (1, 2)), atol=1e-4, rtol=1e-4)


def test_a_turn_keeps_the_form_of_images_that_are_not_square() -> None:
    image = torch.zeros(1, 1, 9, 15)
    image[0, 0, 4, 7 + 3] = 1.0  # three pixels right of the middle
    turned = rotated(image, torch.tensor([0.25]))
    assert turned[0, 0, 4 - 3, 7] == pytest.approx(1.0, abs=1e-4)  # three pixels above it
    eighth = rotated(image, torch.tensor([0.125]))[0, 0]
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(15.0), indexing="ij")
    middle = ((eighth * y).sum() / eighth.sum(), (eighth * x).sum() / eighth.sum())
    step = 3 / 2**0.5
    assert middle[0] == pytest.approx(4 - step, abs=0.1)
    assert middle[1] == pytest.approx(7 + step, abs=0.1)


def test_a_shift_by_whole_pixels_is_exact_and_edges_reflect() -> None:
    image = torch.arange(1.0, 11.0).view(1, 1, 1, 10)
    right = translated(image, torch.zeros(1), torch.tensor([0.2]))
    torch.testing.assert_close(right.flatten(), torch.tensor([2.0, 1, 1, 2, 3, 4, 5, 6, 7, 8]))
    up = translated(image.transpose(2, 3), torch.tensor([-0.1]), torch.zeros(1))
    torch.testing.assert_close(up.flatten(), torch.tensor([2.0, 3, 4, 5, 6, 7, 8, 9, 10, 10]))


def test_contrast_stretches_each_channel_about_its_mean() -> None:
    image = torch.tensor([[[[1.0, 3.0]], [[10.0, 10.0]]]])
    out = contrasted(image, torch.tensor([1.5]))
    assert out.tolist() == [[[[0.5, 3.5]], [[10.0, 10.0]]]]
    drawn = contrast(RAMP, Draw(generator(0, 0)))
    factors = drawn[:, 0].std((1, 2)) / RAMP[:, 0].std((1, 2))
    assert 0.89 < factors.min() < 0.95
    assert 1.05 < factors.max() < 1.11


def test_turns_and_shifts_are_drawn_from_the_published_ranges() -> None:
    dot = torch.zeros(400, 1, 41, 41)
    dot[:, :, 20, 40] = 1.0  # at the right edge, 20 pixels from the middle
    y, x = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    turned = augment(dot, ("rotate",), stream=1, step=0)[:, 0]
    mass = turned.sum((1, 2))
    seen = mass > 0.2
    angle = torch.atan2(
        (turned * (20 - y)).sum((1, 2)) / mass, (turned * (x - 20)).sum((1, 2)) / mass
    )[seen] / (2 * torch.pi)
    assert angle.abs().max() < 0.16
    assert angle.max() > 0.12
    assert angle.min() < -0.12
    dot = torch.zeros(400, 1, 41, 41)
    dot[:, :, 20, 20] = 1.0
    moved = augment(dot, ("translate",), stream=1, step=0)[:, 0]
    for axis in (y, x):
        offset = (moved * axis).sum((1, 2)) - 20
        assert 3.5 < offset.max() <= 4.1 + 1e-3
        assert -4.1 - 1e-3 <= offset.min() < -3.5


def test_every_kind_of_the_recipe_is_known_and_has_draws_of_its_own() -> None:
    alone = {k: augment(RAMP, (k,), stream=5, step=9) for k in AUGMENTS}
    for kind, images in alone.items():
        assert images.shape == RAMP.shape
        assert not torch.equal(images, RAMP), kind
        assert torch.equal(images, augment(RAMP, (kind,), stream=5, step=9))
    both = augment(RAMP, ("contrast", "rotate"), stream=5, step=9)
    again = contrast(alone["rotate"], Draw(generator(derive_seed(5, "contrast"), 9)))
    torch.testing.assert_close(both, again)


def test_augmentation_is_a_function_of_stream_and_step() -> None:
    kinds = AUGMENTS
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
    assert augment(images, AUGMENTS, stream=0, step=0).shape == images.shape


def test_nothing_asked_changes_nothing() -> None:
    assert augment(RAMP, (), stream=0, step=0) is RAMP
