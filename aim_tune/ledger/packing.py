"""Many small integers or booleans as short text, for records of the ledger."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

_INT_TYPES = ("u1", "<i2", "<i4", "<i8")


def pack_ints(values: Sequence[int] | np.ndarray) -> str:
    """Short text for many small integers, in the smallest type that holds them; `unpack_ints` inverts it.

    >>> unpack_ints(pack_ints([3, 1, 999])).tolist()
    [3, 1, 999]
    """
    array = np.asarray(values, dtype=np.int64)
    kind = next(k for k in _INT_TYPES if np.array_equal(array.astype(k), array))
    return f"{kind}:{_squeeze(array.astype(kind).tobytes())}"


def unpack_ints(text: str) -> np.ndarray:
    """The integers (int64) of a text from `pack_ints`."""
    kind, _, body = text.partition(":")
    return np.frombuffer(_unsqueeze(body), dtype=kind).astype(np.int64)


def pack_bits(values: Sequence[bool] | np.ndarray) -> str:
    """Short text for many booleans; `unpack_bits` inverts it.

    >>> unpack_bits(pack_bits([True, False, True])).tolist()
    [True, False, True]
    """
    array = np.asarray(values, dtype=bool)
    return f"{array.size}:{_squeeze(np.packbits(array).tobytes())}"


def unpack_bits(text: str) -> np.ndarray:
    """The booleans of a text from `pack_bits`."""
    size, _, body = text.partition(":")
    bits = np.frombuffer(_unsqueeze(body), dtype=np.uint8)
    return np.unpackbits(bits, count=int(size)).astype(bool)


def _squeeze(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _unsqueeze(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
