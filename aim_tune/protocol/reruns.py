"""The last stage: each arm's best point of the whole study, trained again with fresh seeds and splits.

The point is the best by mean validation accuracy: over the confirm pairs of its block, without any over
single twins or explore trials. Chosen among many, its score there is partly luck; the re-runs' mean is
not. They read validation images only: no further look at the sealed test is spent on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from aim_tune.protocol.stages import Stage
from aim_tune.spec.request import Point
from aim_tune.spec.study import Study

LAST = 10**12
"""Place in the order of the study: after everything else."""


class Pool:
    """Every point that was tried, with its level, per arm; forgets all but the best."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[int, float, Point]] = {}

    def take(self, stage: Stage) -> None:
        """The results of a finished stage. Confirm pairs of one block are one point; a later kind of
        stage counts more than an earlier one, whatever the scores."""
        rank = ("explore", "twin", "confirm").index(stage.kind)
        for arm in stage.points[0]:
            scores = [told[arm].whole for told in stage.told]
            if stage.kind == "confirm":
                known = [s for s in scores if s is not None]
                self._offer(arm, rank, fmean(known) if known else None, stage.points[0][arm])
            else:
                for score, points in zip(scores, stage.points, strict=True):
                    self._offer(arm, rank, score, points[arm])

    def _offer(self, arm: str, rank: int, level: float | None, point: Point) -> None:
        best = self._best.get(arm)
        if level is not None and (best is None or (rank, level) > best[:2]):
            self._best[arm] = (rank, level, point)

    def points(self, study: Study) -> dict[str, Point]:
        """Arm -> its best point; arms that never had a score are left out."""
        return {arm: self._best[arm][2] for arm in study.arms if arm in self._best}


def rerun_stage(study: Study, points: Mapping[str, Point], blocks: int) -> Stage:
    """The re-runs after `blocks` blocks: more blocks may find another point, under another position."""
    return Stage(
        kind="export",
        block=0,
        order=LAST,
        size=study.protocol.export_seeds if points else 0,
        lag=None,
        propose=lambda number, results: points,
        place=lambda number: (f"export/{blocks}/{number}",) * 2,
    )
