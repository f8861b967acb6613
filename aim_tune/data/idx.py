"""Sets in MNIST's idx format: four files, plain or .gz, read in memory; nothing is unpacked on disk.

idx files carry no checksum of their own: lengths, label ranges and (for .gz) the CRC are checked.
Format: https://yann.lecun.com/exdb/mnist (big-endian magic, sizes, bytes).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from aim_tune.data.arrays import Arrays
from aim_tune.errors import DataError

NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LARGEST = 2**32  # bytes in one file: a header that claims more is damaged or hostile


def idx(*, root: str | Path) -> Arrays:
    """uint8 images [N, 1, H, W] and labels; raises DataError naming the file that is at fault."""
    folder = _folder(Path(root))
    train_images, train_labels, test_images, test_labels = (
        read_idx(_file(folder, name), dimensions=3 if "images" in name else 1) for name in NAMES
    )
    return Arrays(
        train_images=train_images[:, None],
        train_labels=train_labels.astype(np.int64),
        test_images=test_images[:, None],
        test_labels=test_labels.astype(np.int64),
        classes=tuple(str(k) for k in range(int(train_labels.max()) + 1)),
    )


def _folder(root: Path) -> Path:
    """The one folder among root, root/raw and root/*/raw that holds idx files."""
    places = [root, root / "raw", *sorted(root.glob("*/raw"))]
    found = [p for p in places if any(_find(p, name) for name in NAMES)]
    if len(found) > 1:
        names = ", ".join(str(p) for p in found)
        raise DataError(f"several idx sets under {root}: {names}; let data.root name one of them")
    return found[0] if found else root


def _find(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _file(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(
            f"{name} (or {name}.gz) missing in {folder}; put the four idx files "
            f"({', '.join(NAMES)}) into the folder that data.root names, or into its NAME/raw"
        )
    return path


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """The uint8 array in an idx file; raises DataError if it is cut, too long or of another type."""
    try:
        with gzip.GzipFile(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _parse(stream, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); fetch it again") from error


def _parse(stream: BufferedIOBase, path: Path, dimensions: int) -> np.ndarray:
    head = stream.read(4 + 4 * dimensions)
    expected = bytes([0, 0, 8, dimensions])  # 8: unsigned bytes
    if head[:4] != expected or len(head) < 4 + 4 * dimensions:
        raise DataError(
            f"{path} is no idx file of {dimensions} dimension(s): starts with {head[:4].hex()}, "
            f"expected {expected.hex()}"
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    size = int(np.prod(shape, dtype=object))
    if not 0 < size < LARGEST:
        raise DataError(f"{path} is damaged: its header claims {size:,} bytes")
    content = stream.read(size + 1)
    if len(content) != size:
        state = "cut short" if len(content) < size else "too long"
        raise DataError(f"{path} is {state}: its header promises {size:,} bytes; fetch it again")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
