from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aim_tune.data import sealed
from aim_tune.data.cifar10 import _read, cifar10
from aim_tune.data.source import check_data
from aim_tune.errors import DataError
from aim_tune.spec.catalog import Catalog


def test_the_real_files_give_the_known_images(real: Callable[[str], Path]) -> None:
    root = real("cifar-10-batches-py")
    arrays = cifar10(root=root, batches=[1])
    assert arrays.classes[:3] == ("airplane", "automobile", "bird")
    assert arrays.train_labels[:6].tolist() == [6, 9, 9, 4, 1, 1]  # frog, truck, truck, deer, car
    assert arrays.train_images[0, :, 0, 0].tolist() == [59, 62, 63]
    assert np.bincount(arrays.test_labels).tolist() == [1000] * 10
    inner = cifar10(root=root / "cifar-10-batches-py", batches=[1])
    assert (inner.train_images == arrays.train_images).all()


def test_missing_batches_are_named_with_what_can_be_done(
    real: Callable[[str], Path], house: Catalog, component: Callable[..., Any]
) -> None:
    root = real("cifar-10-batches-py")
    with pytest.raises(
        DataError, match=r"data_batch_2, .*data_batch_5 missing in .*batches: \[1\]"
    ):
        check_data(component("cifar10", root=str(root)), house)
    info = check_data(component("cifar10", root=str(root), batches=[1]), house)
    assert (info.pool, info.test, info.train, info.val) == (10000, 10000, 5000, 5000)
    assert info.image_shape == (3, 32, 32)
    labels = sealed.test_labels(component("cifar10", root=str(root), batches=[1]), house)
    assert labels[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog


def test_one_flipped_byte_is_noticed(real: Callable[[str], Path]) -> None:
    root = real("cifar-10-batches-py")
    path = root / "cifar-10-batches-py" / "test_batch"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"test_batch is damaged: MD5 .* expected 40351d58"):
        cifar10(root=root, batches=[1])


def test_an_empty_folder_names_every_file_and_where_it_comes_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1, .*test_batch, batches.meta missing .*http"):
        cifar10(root=tmp_path, batches=[1])


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def test_a_hostile_pickle_executes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"asks for (builtins|__builtin__).print; refused"):
        _read(pickle.dumps(Hostile()))
    assert "executed" not in capsys.readouterr().out
