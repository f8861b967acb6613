"""What every arm was granted, and whether it was equal: a comparison of unequal budgets is withheld.

Equality is judged on allotted trials and steps of compare and confirm (1 %); early ends, divergence
and failures are counted beside it. Explore is counted apart: no claim comes from it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aim_tune.ledger import History, Training

TOLERANCE = 0.01
"""Largest relative difference of allotted budgets."""
MATCHED = ("flop_matched", "step_matched", "time_matched")
"""Arms whose very idea is another number of steps; exempt from the check."""
STEPS = ("steps", "epochs", "batch_size")
"""Confounds by which arms are granted other numbers of steps; where one is declared, so are these."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one arm was granted and what became of it."""

    trials: int
    """Trainings asked for."""
    steps: int
    """Optimizer steps allotted."""
    seconds: float
    """Training time used, wall-clock."""
    failed: int
    """Trainings without a usable end: failed or oom."""
    test_looks: int
    """Times the arm was scored on the sealed test examples."""
    diverged: int
    """Trainings whose loss became NaN or inf; they keep the score they reached."""
    early: int
    """Trainings ended by the time limit; they keep the score they reached."""
    steps_done: int
    """Steps really made."""
    oom: int = 0
    """Of the failed ones, those that ran out of memory."""
    pruned: int = 0
    """Trainings stopped early in explore, below their arm's ladder; they keep the score they reached."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def budgets(history: History, rows: Sequence[Training], arms: Sequence[str]) -> dict[str, Budget]:
    """Budget per arm over `rows`."""
    return {arm: _budget(history, [t for t in rows if t.arm == arm], arm) for arm in arms}


def inequality(budgets: Mapping[str, Budget], declared: Collection[str] = ()) -> str:
    """What is unequal, in words; empty where the budgets agree within TOLERANCE."""
    judged = {arm: b for arm, b in budgets.items() if arm not in MATCHED}
    for what in ("trials",) if set(declared) & set(STEPS) else ("trials", "steps"):
        counts = {arm: getattr(b, what) for arm, b in judged.items()}
        low, high = min(counts.values(), default=0), max(counts.values(), default=0)
        if high - low > TOLERANCE * high:
            figures = ", ".join(f"{arm} {count:,}" for arm, count in counts.items())
            return f"{what} allotted: {figures}"
    return ""


def _budget(history: History, rows: Sequence[Training], arm: str) -> Budget:
    own = [t for t in rows if t.reused_from is None]  # a repeated result cost nothing
    results = [t.result for t in own if t.result is not None]
    positions = {t.position for t in rows}
    looks = [r for r in history.looks if r["position"] in positions and arm in r["arms"]]
    statuses = [t.status for t in rows]
    return Budget(
        trials=len(rows),
        steps=sum(_allotted(history, t) for t in own),
        seconds=round(sum(r.seconds for r in results), 3),
        failed=sum(s in ("failed", "oom") for s in statuses),
        test_looks=len(looks),
        diverged=statuses.count("diverged"),
        early=statuses.count("timeout"),
        steps_done=sum(r.steps for r in results),
        oom=statuses.count("oom"),
        pruned=statuses.count("pruned"),
    )


def _allotted(history: History, training: Training) -> int:
    """Steps granted to a training; one that died before it could say was granted what its siblings were."""
    siblings = [t.result.allotted_steps for t in history.of(training.position) if t.result]
    own = training.result.allotted_steps if training.result else 0
    return own or max(siblings, default=0)
