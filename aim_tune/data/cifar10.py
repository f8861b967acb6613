"""CIFAR-10 as its authors publish it: python pickles, checked by MD5 and read by a restricted unpickler.

Nothing is downloaded: a missing file is named. Normalization uses the usual constants.
Source: https://www.cs.toronto.edu/~kriz/cifar.html (MD5 as torchvision lists them).
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aim_tune.data.arrays import Arrays
from aim_tune.errors import DataError

FOLDER = "cifar-10-batches-py"
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
MEAN = (0.4914, 0.4822, 0.4465)
SD = (0.2470, 0.2435, 0.2616)


def cifar10(*, root: str | Path, batches: Sequence[int]) -> Arrays:
    """Train batches in the order given and the official test split, uint8 [N, 3, 32, 32].

    Raises DataError naming every file that is missing or has another MD5.
    """
    folder = _folder(Path(root))
    train = [f"data_batch_{number}" for number in dict.fromkeys(batches)]
    files = _checked_bytes(folder, [*train, "test_batch", "batches.meta"])
    parts = [_read(files[name]) for name in train]
    test = _read(files["test_batch"])
    return Arrays(
        train_images=np.concatenate([_images(part) for part in parts]),
        train_labels=np.concatenate([np.asarray(part["labels"]) for part in parts]),
        test_images=_images(test),
        test_labels=np.asarray(test["labels"]),
        classes=tuple(_read(files["batches.meta"])["label_names"]),
        mean=MEAN,
        sd=SD,
    )


def _folder(root: Path) -> Path:
    """root/cifar-10-batches-py, or root itself when the files lie there."""
    inner = root / FOLDER
    return root if not inner.is_dir() and (root / "batches.meta").is_file() else inner


def _checked_bytes(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        present = [n for n in range(1, 6) if (folder / f"data_batch_{n}").is_file()]
        only_train = all(name.startswith("data_batch_") for name in missing) and present
        advice = f", or use what is there: data.batches: {present}" if only_train else ""
        raise DataError(
            f"CIFAR-10: {', '.join(missing)} missing in {folder}; unpack {URL} so that {FOLDER} lies "
            f"in the folder that data.root names{advice}"
        )
    files = {name: (folder / name).read_bytes() for name in names}
    for name, content in files.items():
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != MD5[name]:
            raise DataError(
                f"CIFAR-10: {folder / name} is damaged: MD5 {found}, expected {MD5[name]} "
                f"({len(content):,} bytes); unpack it again from {URL}"
            )
    return files


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays and plain containers; refuses every other global."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype")

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self.ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise DataError(f"CIFAR-10: a pickle asks for {module}.{name}; refused")


def _read(content: bytes) -> dict[str, Any]:
    return _ArraysOnly(io.BytesIO(content), encoding="latin1").load()


def _images(part: dict[str, Any]) -> np.ndarray:
    return np.asarray(part["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
