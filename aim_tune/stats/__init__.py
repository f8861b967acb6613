"""Honest statistics of paired, block-replicated comparisons: arrays in, frozen results out.

    paired.py    intervals and p values of block differences, Holm
    tuning.py    expected best of m trials, the gap between arms, achieved pairing correlation
    evidence.py  ledger history -> arrays of whole blocks
    edges.py     does a searched range cut an arm short?
    budget.py    what every arm was granted, and whether it was equal
    devices.py   times by type of device
    looks.py     when a study may be judged, and at which level
    compare.py   arm against arm over the judged blocks
    slots.py     how much of its slots a study used, and what the rest waited for
    result.py    what comes out: Comparison, Verdict
    verdict.py   decides; `reporting.words` puts it in words

scipy for the distributions; every rule and its reason stands beside its function. The names below are
imported when they are asked for: scipy takes a second, and slots.py and amounts.py do without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_tune.stats.slots import SlotUse, slot_use
    from aim_tune.stats.verdict import Comparison, Verdict, decide

__all__ = ["Comparison", "SlotUse", "Verdict", "decide", "slot_use"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "slots" if name in ("SlotUse", "slot_use") else "verdict"
    return getattr(import_module(f"{__name__}.{home}"), name)
