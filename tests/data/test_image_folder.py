from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aim_tune.data import files, sealed
from aim_tune.data.files import decode
from aim_tune.data.source import FileSource, TensorSource, check_data, open_source
from aim_tune.errors import DataError
from aim_tune.spec.catalog import Catalog

CPU = torch.device("cpu")
Make = Callable[..., Any]


def test_streamed_and_decoded_once_give_the_same_bits(
    folder: Path, house: Catalog, component: Make
) -> None:
    base = {"root": str(folder), "image_size": 8, "val_images": 4}
    held = open_source(component("image_folder", **base), house)
    streamed = open_source(component("image_folder", **base, in_memory_mib=0, workers=3), house)
    assert isinstance(held, TensorSource)
    assert isinstance(streamed, FileSource)
    assert held.info == streamed.info
    assert (held.split(5).train == streamed.split(5).train).all()
    batches = held.split(5).train.split(3)
    for (images, labels), (images2, labels2) in zip(
        held.pool_batches(batches, CPU), streamed.pool_batches(batches, CPU), strict=True
    ):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)
    for one, other in zip(held.test_batches(4, CPU), streamed.test_batches(4, CPU), strict=True):
        assert torch.equal(one, other)


def test_labels_follow_the_sorted_class_names(
    folder: Path, house: Catalog, component: Make
) -> None:
    row = component("image_folder", root=str(folder), image_size=8, val_images=4)
    source = open_source(row, house)
    assert source.info.class_names == ("cat", "dog")
    assert source.labels.tolist() == [0] * 6 + [1] * 6
    assert sealed.test_labels(row, house).tolist() == [0, 0, 0, 1, 1, 1]


def test_normalization_is_that_of_photographs(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (124, 116, 104)).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png", 8)
    normal = (pixels[:, 0, 0] / 255 - np.array(files.MEAN)) / np.array(files.SD)
    assert np.abs(normal).max() < 0.01


def test_the_middle_square_is_kept(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (decode(tmp_path / "wide.png", 8) == 200).all()


def test_grey_images_become_rgb(folder: Path) -> None:
    pixels = decode(folder / "train" / "cat" / "0.png", 10)
    assert pixels.shape == (3, 10, 10)
    assert (pixels[0] == pixels[1]).all()


@pytest.mark.parametrize("memory", [0, 100])
def test_half_a_jpeg_is_named_before_anything_starts(
    folder: Path, house: Catalog, component: Make, memory: int
) -> None:
    path = folder / "train" / "dog" / "9.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    row = component("image_folder", root=str(folder), image_size=8, in_memory_mib=memory)
    with pytest.raises(DataError, match=r"1 image file\(s\) cannot be read.*\n.*dog/9.jpg"):
        check_data(row, house)


@pytest.mark.parametrize("memory", [0, 100])
def test_a_text_file_named_png_is_named(
    folder: Path, house: Catalog, component: Make, memory: int
) -> None:
    (folder / "test" / "cat" / "no.png").write_text("not an image")
    row = component("image_folder", root=str(folder), image_size=8, in_memory_mib=memory)
    with pytest.raises(DataError, match=r"cat/no.png: cannot identify"):
        check_data(row, house)


def test_a_file_cut_while_streaming_is_named(folder: Path, house: Catalog, component: Make) -> None:
    row = component("image_folder", root=str(folder), image_size=8, in_memory_mib=0)
    source = open_source(row, house)
    (folder / "train" / "cat" / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cat/1.png"):
        list(source.pool_batches([torch.arange(6)], CPU))


def test_an_empty_class_is_named(folder: Path, house: Catalog, component: Make) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"train/dog has no image; add some"):
        check_data(component("image_folder", root=str(folder)), house)


def test_classes_that_differ_between_splits_are_named(
    folder: Path, house: Catalog, component: Make
) -> None:
    (folder / "test" / "dog").rename(folder / "test" / "Dog")
    with pytest.raises(DataError, match=r"test has the classes Dog, cat; expected .*: cat, dog"):
        check_data(component("image_folder", root=str(folder)), house)


def test_without_test_folder_a_share_can_be_sealed(
    folder: Path, house: Catalog, component: Make
) -> None:
    (folder / "test").rename(folder / "elsewhere")
    row = component("image_folder", root=str(folder), image_size=8)
    with pytest.raises(DataError, match=r"test is missing; .*data.test_share: 0.2"):
        check_data(row, house)
    row = component("image_folder", root=str(folder), image_size=8, test_share=0.25)
    info = check_data(row, house)
    assert (info.pool, info.test) == (9, 3)
    assert len(sealed.test_labels(row, house)) == 3


def test_a_share_beside_a_test_folder_is_refused(
    folder: Path, house: Catalog, component: Make
) -> None:
    with pytest.raises(DataError, match=r"data.test_share: 0.25 was given, but .*test exists"):
        check_data(component("image_folder", root=str(folder), test_share=0.25), house)


def test_the_digest_sees_a_changed_pixel_and_a_renamed_file(
    folder: Path, house: Catalog, component: Make
) -> None:
    def digest(memory: int) -> str:  # a new setting: another entry in the cache of sources
        row = component("image_folder", root=str(folder), image_size=8, in_memory_mib=memory)
        return check_data(row, house).digest

    first = digest(1)
    assert digest(2) == first
    (folder / "train" / "cat" / "1.png").rename(folder / "train" / "cat" / "one.png")
    second = digest(3)
    Image.new("RGB", (12, 10), (1, 2, 3)).save(folder / "train" / "cat" / "one.png")
    assert len({first, second, digest(4)}) == 3


def test_threads_of_an_abandoned_stream_end(folder: Path, house: Catalog, component: Make) -> None:
    row = component("image_folder", root=str(folder), image_size=8, in_memory_mib=0)
    stream = open_source(row, house).pool_batches([torch.arange(6)] * 50, CPU)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while any(t.name.startswith("decode") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "decoding threads still run"
        time.sleep(0.01)


def test_real_dogs_with_grey_jpegs_open(
    real: Callable[[str], Path], house: Catalog, component: Make
) -> None:
    root = next(p.parent for p in real("tinyimagenet_dogs6_imagefolder.zip").rglob("train"))
    info = check_data(component("image_folder", root=str(root), image_size=32), house)
    assert (info.classes, info.pool, info.test) == (6, 3000, 300)
    assert info.class_names[0] == "chihuahua"
    assert (info.train, info.val) == (2400, 600)
