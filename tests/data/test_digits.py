from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from aim_tune.data.arrays import digest
from aim_tune.data.digits import digits, enlarge
from aim_tune.errors import DataError

PLAIN = {"seed": 0, "image_size": 16, "channels": 1, "noise_sd": 0.0, "occlusion": 0}


@pytest.mark.parametrize("size", [8, 13, 16, 32])
def test_enlarging_equals_torchs_bilinear(size: int) -> None:
    images = load_digits().images[:20]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(images)[:, None], size=(size, size), mode="bilinear", align_corners=False
    )
    assert np.allclose(enlarge(images, size), expected[:, 0].numpy(), atol=1e-12)


def test_1000_pool_and_797_test_images_cover_all_digits_once() -> None:
    arrays = digits(**{**PLAIN, "image_size": 8})
    assert len(arrays.train_images) == 1000
    assert len(arrays.test_images) == 797
    found = np.concatenate([arrays.train_images, arrays.test_images])[:, 0]
    expected = (load_digits().images / 8 - 1).astype(np.float32)
    assert sorted(map(bytes, found)) == sorted(map(bytes, expected))


def test_each_image_keeps_its_label() -> None:
    arrays = digits(**{**PLAIN, "image_size": 8})
    raw = load_digits()
    label = {
        bytes((i / 8 - 1).astype(np.float32)): t
        for i, t in zip(raw.images, raw.target, strict=True)
    }
    assert [label[bytes(i[0])] for i in arrays.test_images] == arrays.test_labels.tolist()


def test_noise_has_the_asked_deviation_and_is_fixed_by_the_data_seed() -> None:
    clean, noisy = digits(**PLAIN), digits(**{**PLAIN, "noise_sd": 0.4})
    assert (noisy.train_images - clean.train_images).std() == pytest.approx(0.4, abs=0.005)
    assert digest(noisy) == digest(digits(**{**PLAIN, "noise_sd": 0.4}))
    assert digest(noisy) != digest(digits(**{**PLAIN, "noise_sd": 0.4, "seed": 1}))


def test_one_square_of_each_image_is_covered() -> None:
    images = digits(**{**PLAIN, "noise_sd": 0.4, "occlusion": 5}).train_images[:, 0]
    covered = images == 0.0
    assert set(covered.sum(axis=(1, 2)).tolist()) == {25}
    assert set(covered.any(axis=1).sum(axis=1).tolist()) == {5}  # 25 in 5 columns: a square


def test_three_channels_repeat_the_grey_one() -> None:
    images = digits(**{**PLAIN, "noise_sd": 0.4, "channels": 3}).test_images
    assert images.shape == (797, 3, 16, 16)
    assert (images[:, 0] == images[:, 2]).all()


def test_a_square_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"data.occlusion: 16 covers .* allowed: 0 to 15"):
        digits(**{**PLAIN, "occlusion": 16})
