"""Canonical JSON and short stable hashes: the identity of studies, points and requests."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def short_hash(value: Any) -> str:
    """First 16 hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def derive_seed(*parts: Any) -> int:
    """A seed in [0, 2**63) that depends on every part and on their order.

    >>> derive_seed(0, "block/3", "order") == derive_seed(0, "block/3", "order")
    True
    """
    digest = hashlib.sha256(canonical(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
