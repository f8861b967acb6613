"""Which examples go where: a fixed order of examples per (seed, purpose), by hash of each example's key.

An example's place depends on its own key and the seed only, so a set that grows keeps most of its
splits. numpy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from aim_tune.spec.values import derive_seed


def key_ids(keys: Sequence[str] | int) -> np.ndarray:
    """One uint64 per example: a hash of its name, or its position where examples have no names."""
    if isinstance(keys, int):
        return np.arange(keys, dtype=np.uint64)
    digests = [hashlib.sha256(k.encode(errors="surrogateescape")).digest()[:8] for k in keys]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def ranking(ids: np.ndarray, seed: int, *, purpose: str) -> np.ndarray:
    """Positions of the examples in an order that is random for each (seed, purpose)."""
    salt = np.uint64(derive_seed(purpose, seed))
    return np.argsort(_mixed(_mixed(ids) ^ salt), kind="stable")


def _mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: a bijection of uint64 that scatters neighbors.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
