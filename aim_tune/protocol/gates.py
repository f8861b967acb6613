"""Gates: where the machine cannot know whether to go on, because it sees no test score and no clock.

look/8       before block 8, at a planned look: on, unless the verdict over the first 8 blocks decides
block/7      before block 7 of a study with budget_gpu_hours: on, if one more block fits into the budget
attribution/10  after the last block: on to the arms that wait (after_better), if the verdict is "better"

Pure: study and history in, a ledger record out. The answer is written down, and read again on resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from aim_tune.ledger import History, Training
from aim_tune.spec.study import Resources, Study
from aim_tune.stats import decide


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A question of the machine."""

    name: str
    blocks: int
    """Blocks before it."""

    @property
    def kind(self) -> str:
        """look, block or attribution."""
        return self.name.partition("/")[0]


def judge(study: Study, history: History, gate: Gate) -> dict[str, Any]:
    """The record of a gate: whether it is open, and why."""
    record = {"event": "gate", "gate": gate.name, "blocks": gate.blocks}
    if gate.kind == "block":
        return {**record, "verdict": None, **_affordable(study, history)}
    verdict = decide(study, history)
    goes_on = verdict.interim if gate.kind == "look" else verdict.verdict == "better"
    reason = "" if goes_on else f"the verdict is {verdict.verdict}"
    return {**record, "verdict": verdict.verdict, "open": goes_on, "reason": reason}


def device_hours(resources: Resources, rows: Iterable[Training]) -> float:
    """GPU hours that trainings took; core hours where trials have no GPU."""
    return sum(_seconds(t) for t in rows) * (resources.gpu or resources.cpu) / 3600


def _affordable(study: Study, history: History) -> dict[str, Any]:
    """Whether one more block fits beside what was used and what the open blocks will still take."""
    budget, block = study.protocol.budget_gpu_hours, _block_hours(study, history)
    assert budget is not None, "only a study with a budget asks"
    used = device_hours(study.resources, history.rows())
    if block is None:
        return {"open": True, "reason": "nothing is known of the cost yet"}
    opened = {r.block for r in history.requests.values() if r.block is not None}
    spent = device_hours(study.resources, [t for t in history.rows() if t.block is not None])
    needed = used + max(0.0, block * len(opened) - spent) + block
    return {
        "open": needed <= budget,
        "reason": f"{used:.3g} of {budget:g} device hours used, {needed:.3g} with one more block",
    }


def _block_hours(study: Study, history: History) -> float | None:
    """Expected device hours of a block, later arms included; None before any training of one ended."""
    p, done = study.protocol, [t for t in history.rows() if t.done and t.block is not None]
    twin = [_seconds(t) for t in done if t.stage == "twin"]
    confirm = [_seconds(t) for t in done if t.stage == "confirm"]
    if not twin:
        return None
    one_confirm = fmean(confirm) if confirm else fmean(twin) / p.search_fraction
    seconds = len(study.arms) * (p.twins * fmean(twin) + p.confirm * one_confirm)
    return seconds * (study.resources.gpu or study.resources.cpu) / 3600


def _seconds(training: Training) -> float:
    """Time on the device: from start to end of an uninterrupted training, else its steps' alone."""
    if training.reused_from is not None or training.result is None:
        return 0.0
    if training.attempts == 1 and training.started and training.finished:
        return max(training.result.seconds, training.finished - training.started)
    return training.result.seconds
