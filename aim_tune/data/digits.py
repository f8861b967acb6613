"""scikit-learn's handwritten digits made hard: enlarged, noisy, partly covered. Needs no files.

1,797 grey 8 x 8 images; 797 of them, drawn by the data seed, are the test examples. Noise and the
covered square are fixed per image by the data seed, so that every training sees the same data.
Scale: ink 1, paper -1, covered 0; with it a plain ResNet-8 of width 8,
trained on 200 images, gets 38 to 82 % depending on its learning rate (AdamW: best near 0.3).
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from aim_tune.data.arrays import Arrays
from aim_tune.errors import DataError

TEST = 797


def digits(*, seed: int, image_size: int, channels: int, noise_sd: float, occlusion: int) -> Arrays:
    """All digits as float32 [N, channels, size, size]."""
    if occlusion >= image_size:
        raise DataError(
            f"data.occlusion: {occlusion} covers the whole image of {image_size} pixels; "
            f"allowed: 0 to {image_size - 1}"
        )
    raw = load_digits()
    images = enlarge(raw.images / 8.0 - 1.0, image_size)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(images))
    images = images + generator.normal(0.0, noise_sd, images.shape)
    cover(images, occlusion, generator)
    images_NCHW = np.repeat(images[:, None].astype(np.float32), channels, axis=1)
    test, train = order[:TEST], order[TEST:]
    return Arrays(
        train_images=images_NCHW[train],
        train_labels=raw.target[train],
        test_images=images_NCHW[test],
        test_labels=raw.target[test],
        classes=tuple("0123456789"),
        black_white=(-1.0, 1.0),
    )


def enlarge(images_NHW: np.ndarray, size: int) -> np.ndarray:
    """[N, size, size]: bilinear, pixel centers aligned (torch's align_corners=False)."""
    weights = _bilinear(images_NHW.shape[1], size)
    return np.einsum("sh,nhw,tw->nst", weights, images_NHW, weights, optimize=True)


def _bilinear(old: int, new: int) -> np.ndarray:
    """[new, old] interpolation weights; each row sums to 1."""
    centers = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    left = np.minimum(centers.astype(int), old - 2)
    weights = np.zeros((new, old))
    weights[np.arange(new), left] = 1 - (centers - left)
    weights[np.arange(new), left + 1] = centers - left
    return weights


def cover(images_NHW: np.ndarray, side: int, generator: np.random.Generator) -> None:
    """Set one random square of each image to 0, in place."""
    size = images_NHW.shape[1]
    corners = generator.integers(0, size - side + 1, (len(images_NHW), 2))
    for image, (top, left) in zip(images_NHW, corners, strict=True):
        image[top : top + side, left : left + side] = 0.0
