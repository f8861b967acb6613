"""Data sets: one visible table, name -> builder and settings. Imports no torch.

A builder returns raw data (`data.arrays.Arrays`, `data.files.Files`, or a plug-in's 4-tuple of
arrays: train images NCHW, train labels, test images, test labels). What the builders share, such as
splits by seed, normalization and digests, is in `data.source`; test labels come only from `data.sealed`.
Nothing is ever downloaded: a missing file is named together with where to put it.
"""

from __future__ import annotations

from aim_tune.data.info import DataInfo
from aim_tune.spec.catalog import Entry, Setting

__all__ = ["COMMON", "DATASETS", "DataInfo"]


def common(*, val_images: int | None) -> dict[str, Setting]:
    """The settings that every data set has; `val_images` is this set's default."""
    return {
        "train_images": Setting(
            kind="int", default=None, low=1, optional=True,
            doc="Training images per split; null: all that validation leaves.",
        ),
        "val_images": Setting(
            kind="int", default=val_images, low=1, optional=True,
            doc="Validation images per split; null: a fifth of the pool.",
        ),
        "seed": Setting(
            kind="int", default=0, low=0,
            doc="Data seed: fixes the test examples of sets without an official test split, and what "
            "is done to the images once and for all.",
        ),
    }  # fmt: skip


COMMON = common(val_images=None)
"""Settings that plug-in rows may offer too; `data.source` understands them whoever builds the data."""


def root(default: str, doc: str) -> Setting:
    """The setting that says where the files lie."""
    return Setting(kind="path", default=default, doc=doc)


DATASETS: dict[str, Entry] = {
    "digits": Entry(
        build="aim_tune.data.digits:digits",
        doc="scikit-learn's 1,797 handwritten digits, enlarged, noisy, partly covered; needs no files.",
        settings={
            **common(val_images=300),
            "image_size": Setting(kind="int", default=16, low=8, high=128, doc="Side, pixels."),
            "channels": Setting(
                kind="int", default=3, options=(1, 3), doc="3: grey repeated, as for color nets."
            ),
            "noise_sd": Setting(
                kind="float", default=0.4, low=0.0, high=10.0,
                doc="Gaussian noise; ink is 1, paper -1. Fixed per image.",
            ),
            "occlusion": Setting(
                kind="int", default=5, low=0, high=128,
                doc="Side of the covered square, pixels; 0: none. Fixed per image.",
            ),
        },
    ),
    "cifar10": Entry(
        build="aim_tune.data.cifar10:cifar10",
        doc="CIFAR-10 in its python pickles (cifar-10-batches-py), MD5-checked.",
        settings={
            **common(val_images=5000),
            "root": root("data", "Folder that holds cifar-10-batches-py, or that folder itself."),
            "batches": Setting(
                kind="shape", default=[1, 2, 3, 4, 5], low=1, high=5,
                doc="Which data_batch_N to use: [1] is 10,000 training images.",
            ),
        },
    ),
    "mnist": Entry(
        build="aim_tune.data.idx:idx",
        doc="Any set in MNIST's idx format (MNIST, Fashion-MNIST, KMNIST...), plain or .gz.",
        settings={
            **common(val_images=5000),
            "root": root("data", "Folder that holds the four idx files, or NAME/raw with them."),
        },
    ),
    "image_folder": Entry(
        build="aim_tune.data.image_folder:image_folder",
        doc="Your own images: train/<class>/*.jpg and test/<class>/*.jpg (or png, webp...).",
        settings={
            **common(val_images=None),
            "root": Setting(kind="path", doc="Folder that holds train/ and test/."),
            "image_size": Setting(
                kind="int", default=64, low=8, high=1024,
                doc="Side, pixels: the shorter side is resized to it, the middle square is kept.",
            ),
            "test_share": Setting(
                kind="float", default=None, low=0.01, high=0.9, optional=True,
                doc="Where there is no test/: share of train/ that is sealed as test, by data seed.",
            ),
            "in_memory_mib": Setting(
                kind="int", default=1024, low=0,
                doc="Sets whose decoded images fit are decoded once; others stream. Same results.",
            ),
            "workers": Setting(
                kind="int", default=2, low=1, high=64,
                doc="Decoding threads of a set that streams. Same results whatever the number.",
            ),
        },
    ),
}  # fmt: skip
