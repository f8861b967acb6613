"""What a training sees of a data set: batches of the pool, splits by seed, test images without labels.

Small sets live as tensors on the device (`TensorSource`); large folders stream, decoded by threads
that run ahead (`FileSource`). Both give the same numbers. Draws no random number except the split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aim_tune.data.arrays import Arrays, digest, moments
from aim_tune.data.files import MEAN, SD, Files, check_files, decode_all
from aim_tune.data.info import DataInfo, Preparation
from aim_tune.data.raw import raw_data
from aim_tune.data.splits import key_ids, ranking
from aim_tune.errors import DataError
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component
from aim_tune.spec.values import canonical

__all__ = ["DataInfo", "Preparation", "Source", "Split", "check_data", "open_source"]

KEPT_OPEN = 2  # sources a process keeps: reused workers see one study's data again and again
BATCHES_AHEAD = 2  # per decoding thread
BYTE = 255.0
"""Largest value of a uint8 pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Positions in the pool, int64 on the CPU."""

    train: Tensor
    val: Tensor


class Source(ABC):
    """An opened data set. Never holds test labels."""

    info: DataInfo
    labels: Tensor
    """[pool] int64 on the CPU."""
    preparation: Preparation

    def __init__(self, info: DataInfo, labels: np.ndarray, ids: np.ndarray) -> None:
        self.info = info
        self.labels = torch.from_numpy(labels)
        self._ids = ids

    def split(self, seed: int) -> Split:
        """Validation and training positions by hash of (seed, example); disjoint, sizes as in `info`."""
        order = torch.from_numpy(ranking(self._ids, seed, purpose="split"))
        val, train = self.info.val, self.info.train
        return Split(val=order[:val], train=order[val : val + train])

    @abstractmethod
    def pool_batches(
        self, batches: Sequence[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(images [B, C, H, W] float32 normalized, labels [B] int64) for each batch of positions."""

    @abstractmethod
    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """The test images [B, C, H, W] float32 normalized, in fixed order. No labels."""

    def pixels(self, images: Tensor) -> Tensor:
        """Normalized images as the pixels they were made from, float32; whole numbers where those were."""
        made = self.preparation
        scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in (made.scale, made.shift))
        pixels = (images.cpu() - shift) / scale
        return pixels.round() if made.white == BYTE else pixels


class _Normalizer:
    """Pixel values to zero mean and unit deviation; one multiplication and one addition."""

    def __init__(
        self, mean: Sequence[float], sd: Sequence[float], black_white: tuple[float, float] | None
    ) -> None:
        """`black_white` None: of uint8 images, whose mean and deviation are given for values in 0..1."""
        unit = BYTE if black_white is None else 1.0
        self.black, self.white = black_white or (0.0, BYTE)
        shift = [-m / s for m, s in zip(mean, sd, strict=True)]
        self.scale = torch.tensor([1.0 / (unit * s) for s in sd]).view(1, -1, 1, 1)
        self.shift = torch.tensor(shift).view(1, -1, 1, 1)

    @property
    def preparation(self) -> Preparation:
        """What it does, as plain numbers."""
        scale, shift = (tuple(t.flatten().tolist()) for t in (self.scale, self.shift))
        return Preparation(scale=scale, shift=shift, black=self.black, white=self.white)

    def __call__(self, images: Tensor) -> Tensor:
        scale, shift = self.scale.to(images.device), self.shift.to(images.device)
        return images.float().mul(scale).add_(shift)


class TensorSource(Source):
    """A set that lives as tensors on the device, copied there at first use."""

    def __init__(self, info: DataInfo, arrays: Arrays) -> None:
        ids = key_ids(arrays.keys or len(arrays.train_labels))
        super().__init__(info, arrays.train_labels, ids)
        mean, sd = moments(arrays.train_images) if arrays.mean is None else (arrays.mean, arrays.sd)
        uint8 = arrays.train_images.dtype == np.uint8
        normalize = _Normalizer(
            mean, sd or (1.0,) * len(mean), None if uint8 else arrays.black_white
        )
        self.preparation = normalize.preparation
        pool, test = torch.from_numpy(arrays.train_images), torch.from_numpy(arrays.test_images)
        self._host = (pool, test) if uint8 else (normalize(pool), normalize(test))
        self._ready: Callable[[Tensor], Tensor] = normalize if uint8 else _same
        self._there: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Pool images, labels and test images on the device."""
        if device not in self._there:
            tensors = (self._host[0], self.labels, self._host[1])
            pool, labels, test = (t.to(device) for t in tensors)
            self._there[device] = (pool, labels, test)
        return self._there[device]

    def pool_batches(
        self, batches: Sequence[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`."""
        images, labels, _ = self._on(device)
        for batch in batches:
            where = batch.to(device)
            yield self._ready(images.index_select(0, where)), labels.index_select(0, where)

    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """See `Source`."""
        for images in self._on(device)[2].split(batch_size):
            yield self._ready(images)


def _same(images: Tensor) -> Tensor:
    return images


class FileSource(Source):
    """A set that is decoded batch by batch while the network trains."""

    def __init__(self, info: DataInfo, files: Files) -> None:
        super().__init__(info, files.train_labels, key_ids(files.train))
        self._root, self._train, self._test = files.root, files.train, files.test
        self._size, self._workers = files.image_size, files.workers
        self._normalize = _Normalizer(MEAN, SD, None)
        self.preparation = self._normalize.preparation

    def pool_batches(
        self, batches: Sequence[Tensor], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`."""

        def read(batch: Tensor) -> tuple[Tensor, Tensor]:
            images = self._decode([self._train[i] for i in batch.tolist()], device)
            return images, self.labels[batch]

        for images, labels in run_ahead(read, batches, self._workers):
            yield self._normalize(images.to(device, non_blocking=True)), labels.to(device)

    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[Tensor]:
        """See `Source`."""

        def read(start: int) -> Tensor:
            return self._decode(self._test[start : start + batch_size], device)

        for images in run_ahead(read, range(0, len(self._test), batch_size), self._workers):
            yield self._normalize(images.to(device, non_blocking=True))

    def check(self) -> None:
        """Look at both ends of every file; raises DataError naming those that cannot be read."""
        paths = [self._root / key for key in (*self._train, *self._test)]
        check_files(paths, workers=self._workers)

    def _decode(self, keys: Sequence[str], device: torch.device) -> Tensor:
        images = torch.from_numpy(decode_all(self._root, keys, image_size=self._size))
        return images.pin_memory() if device.type == "cuda" else images


def run_ahead(read: Callable[[Any], Any], items: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map(read, items)` in order, with threads that stay a few items ahead and end with the iterator."""
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[Any]] = deque(
            pool.submit(read, item) for item in islice(remaining, workers * BATCHES_AHEAD)
        )
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in islice(remaining, 1))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_open: OrderedDict[Any, Source] = OrderedDict()


def open_source(component: Component, catalog: Catalog) -> Source:
    """The data set, ready to train on; opened once per process and reused.

    Raises DataError naming the file and what to put where.
    """
    entry = catalog.data.get(component.name)
    key = (component.name, canonical(dict(component.settings)), entry and entry.build)
    if key not in _open:
        _open[key] = _opened(component, catalog)
        while len(_open) > KEPT_OPEN:
            _open.popitem(last=False)
    _open.move_to_end(key)
    return _open[key]


def check_data(component: Component, catalog: Catalog) -> DataInfo:
    """Look at all of the data before anything starts; raises DataError naming the file at fault.

    A set that will stream is not decoded: both ends of each file are looked at.
    """
    source = open_source(component, catalog)
    if isinstance(source, FileSource):
        source.check()
    return source.info


def _opened(component: Component, catalog: Catalog) -> Source:
    raw = raw_data(component, catalog)
    info = _info(component, catalog, raw)
    if isinstance(raw, Arrays):
        return TensorSource(info, raw)
    return TensorSource(info, raw.decoded()) if raw.fits_memory else FileSource(info, raw)


def _info(component: Component, catalog: Catalog, raw: Arrays | Files) -> DataInfo:
    settings = {**catalog.data[component.name].defaults(), **component.settings}
    pool = len(raw.train_labels)
    train, val = _sizes(component.name, pool, settings)
    return DataInfo(
        name=component.name,
        classes=len(raw.classes),
        class_names=raw.classes,
        image_shape=raw.image_shape,
        pool=pool,
        test=len(raw.test_labels),
        train=train,
        val=val,
        digest=digest(raw) if isinstance(raw, Arrays) else raw.digest,
    )


def _sizes(name: str, pool: int, settings: dict[str, Any]) -> tuple[int, int]:
    """Training and validation images of a split."""
    val = settings.get("val_images")
    val = max(1, pool // 5) if val is None else val
    train = settings.get("train_images")
    train = pool - val if train is None else train
    if train < 1 or val < 1 or train + val > pool:
        raise DataError(
            f"data set {name!r}: train_images {train} + val_images {val} do not fit the {pool} images "
            f"of its pool; allowed: both at least 1, together at most {pool}"
        )
    return train, val
