"""Blocks, twins and confirm pairs that a budget of device hours pays for. Pure arithmetic on measured times.

The rule: 5 twins, 1 to 3 confirm pairs, as many blocks as fit (at most 20); of these the one that detects
the smallest difference with at least 6 blocks. Where 5 twins do not allow 6 blocks: 4 twins, the least we
call tuned; where that does not either: the most that can be detected with fewer blocks. Where 20 blocks
leave hours over: up to 10 twins. Keys that the study writes out stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aim_tune.data.info import DataInfo
from aim_tune.errors import UserError
from aim_tune.protocol.plan import make_plan
from aim_tune.spec.study import Study

LEAST_BLOCKS, WANTED_BLOCKS, MOST_BLOCKS = 2, 6, 20
TWINS, FEW_TWINS, MANY_TWINS = 5, 4, 10
CONFIRM = (1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a study costs where it was measured."""

    hours: Mapping[str, float]
    """Arm -> device hours of one whole training."""
    unit: str
    """GPU hours or core hours."""

    def block(self, study: Study) -> float:
        """Device hours of one block, every arm included."""
        p = study.protocol
        return sum(self.hours.values()) * (p.search_fraction * p.twins + p.confirm)

    def explore(self, study: Study) -> float:
        """Device hours before the first block."""
        arms = study.protocol.explore.arms or study.explore_arms
        return study.protocol.explore.requests * sum(self.hours[arm] for arm in arms)

    def whole(self, study: Study) -> float:
        """Device hours of the whole study."""
        rerun = study.protocol.export_seeds * sum(self.hours.values())
        return self.explore(study) + study.protocol.blocks * self.block(study) + rerun


def sized(study: Study, info: DataInfo, prices: Prices) -> Study:
    """`study` with the sizes that its budget pays for. Raises UserError where it pays for none."""
    fits = [s for s in _options(study, prices, TWINS) if s.protocol.blocks >= WANTED_BLOCKS]
    few = list(_options(study, prices, FEW_TWINS))
    fits = fits or [s for s in few if s.protocol.blocks >= WANTED_BLOCKS] or few
    if not fits:
        raise UserError(_refusal(study, prices))
    best = min(fits, key=lambda s: _detectable(s, info))
    while _can_tune_more(best, prices):
        best = _with(best, twins=best.protocol.twins + 1)
    return best


def _options(study: Study, prices: Prices, twins: int) -> Iterable[Study]:
    """Sizes that fit, one for each number of confirm pairs."""
    p = study.protocol
    assert p.budget_gpu_hours is not None, "only a study with a budget is sized by it"
    for confirm in CONFIRM if "confirm" in p.chosen else (p.confirm,):
        one = _with(study, twins=twins, confirm=confirm)
        left = p.budget_gpu_hours - prices.whole(one) + one.protocol.blocks * prices.block(one)
        found = _with(one, blocks=min(MOST_BLOCKS, int(left / prices.block(one))))
        if found.protocol.blocks >= LEAST_BLOCKS and prices.whole(found) <= p.budget_gpu_hours:
            yield found


def _with(study: Study, **sizes: int) -> Study:
    """`study` with those of `sizes` that are the planner's to choose."""
    own: dict[str, Any] = {k: v for k, v in sizes.items() if k in study.protocol.chosen}
    return replace(study, protocol=replace(study.protocol, **own))


def _detectable(study: Study, info: DataInfo) -> float:
    found = make_plan(study, info).mde_points
    return found if found is not None else 1 / (study.protocol.blocks or 1)


def _can_tune_more(study: Study, prices: Prices) -> bool:
    more = _with(study, twins=study.protocol.twins + 1)
    return (
        more != study
        and study.protocol.blocks >= MOST_BLOCKS
        and more.protocol.twins <= MANY_TWINS
        and prices.whole(more) <= (study.protocol.budget_gpu_hours or 0.0)
    )


def _refusal(study: Study, prices: Prices) -> str:
    least = _with(study, blocks=LEAST_BLOCKS, twins=FEW_TWINS, confirm=1)
    p = least.protocol
    return (
        f"protocol.budget_gpu_hours: {p.budget_gpu_hours:g} {prices.unit} pay for no study here: "
        f"{p.blocks} blocks of {p.twins} twins and {p.confirm} confirm pair{'s' * (p.confirm > 1)} take "
        f"about {prices.whole(least):.3g}. Give more, train for fewer steps, or leave arms out."
    )
