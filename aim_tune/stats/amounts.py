"""How a study stands and how much is still to run, with blocks that were added, ended early, or run again
for arms that waited. Pure: study and history in, numbers out."""

from __future__ import annotations

from aim_tune.ledger import History
from aim_tune.spec.study import MEASURED, Study

MOST_WEIGHED = 2000
"""Trainings of an arm in a stage that the importance of settings is computed from."""
MOST_FAILED = 0.2
"""A study in which a larger share of trainings failed or ran out of memory counts as failed."""


def blocks_to_run(study: Study, history: History) -> int:
    """Blocks in all: as planned, as extended, or fewer where a look decided or the budget was used up."""
    planned = history.blocks or study.protocol.blocks
    return min(planned, history.stopped["blocks"]) if history.stopped else planned


def requests_to_run(study: Study, history: History) -> int:
    """Requests in all. As long as it is open whether waiting arms are trained, they count."""
    p, blocks = study.protocol, blocks_to_run(study, history)
    own = blocks * (p.twins + p.confirm)
    gate = history.gates.get(f"attribution/{blocks}", {"open": True})
    later = own if study.later_arms and gate["open"] else 0
    arms = study.arms if later else study.main_arms
    match = bool(blocks and set(arms) & set(MEASURED))
    return p.explore.requests + match + own + later + _reruns(study, history, blocks)


def _reruns(study: Study, history: History, blocks: int) -> int:
    """Re-runs of the best points, with those that an earlier end of the study has had."""
    earlier = [k for k in history.requests if k.startswith("export/")]
    return study.protocol.export_seeds + sum(k.split("/")[1] != str(blocks) for k in earlier)


def study_status(study: Study, history: History) -> str:
    """complete, unfinished, or failed (too many failed trainings)."""
    failed, done = failures(history)
    if failed > MOST_FAILED * done:
        return "failed"
    return "complete" if is_whole(study, history) else "unfinished"


def is_whole(study: Study, history: History) -> bool:
    """Whether nothing is left to run, however it went."""
    return len(history.done) >= requests_to_run(study, history)


def failures(history: History) -> tuple[int, int]:
    """Trainings that failed, and all that ended."""
    ended = [t for t in history.rows() if t.done and t.reused_from is None]
    return sum(t.failed for t in ended), len(ended)
