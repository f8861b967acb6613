"""Honest statistics of paired, block-replicated comparisons: arrays in, frozen results out.

    paired.py    intervals and p values of block differences, Holm
    tuning.py    expected best of m trials, the gap between arms, achieved pairing correlation
    evidence.py  ledger history -> arrays of whole blocks
    edges.py     does a searched range cut an arm short?
    budget.py    what every arm was granted, and whether it was equal
    devices.py   times by type of device
    looks.py     when a study may be judged, and at which level
    compare.py   arm against arm over the judged blocks
    result.py    what comes out: Comparison, Verdict
    verdict.py   decides; `reporting.words` puts it in words

scipy for the distributions; every rule and its reason stands beside its function.
"""

from aim_tune.stats.verdict import Comparison, Verdict, decide

__all__ = ["Comparison", "Verdict", "decide"]
