"""What a budget pays for: hand-computed sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aim_tune.data.info import DataInfo
from aim_tune.errors import UserError
from aim_tune.protocol.afford import Prices, sized
from aim_tune.spec.study import Study

INFO = DataInfo(
    name="digits", classes=10, class_names=tuple("0123456789"), image_shape=(1, 8, 8),
    pool=1000, test=800, train=200, val=300, digest="d1ce",
)  # fmt: skip
PRICES = Prices(hours={"baseline": 1.0, "aim": 1.5, "frozen": 1.5}, unit="core hours")
"""A training of each arm: 4 hours."""


def study(sim: Any, budget: float, *chosen: str, **protocol: Any) -> Study:
    made = sim.study_of(explore=0, blocks=3, twins=7, confirm=2)
    keys = chosen or ("blocks", "twins", "confirm")
    own = replace(made.protocol, budget_gpu_hours=budget, chosen=keys, **protocol)
    return replace(made, protocol=own)


def sizes(sim: Any, budget: float, *chosen: str, **protocol: Any) -> tuple[int, int, int]:
    found = sized(study(sim, budget, *chosen, **protocol), INFO, PRICES)
    assert PRICES.whole(found) <= budget
    p = found.protocol
    return p.blocks, p.twins, p.confirm


def test_prices_of_a_block_of_explore_and_of_the_whole(sim: Any) -> None:
    one = study(sim, 1.0, search_fraction=0.5)
    assert PRICES.block(one) == 4.0 * (0.5 * 7 + 2)
    assert PRICES.whole(one) == 3 * 22.0
    explored = replace(one, protocol=replace(one.protocol, explore=replace(
        one.protocol.explore, trials=10)))  # fmt: skip
    assert PRICES.whole(explored) == 10 * 4.0 + 66.0


@pytest.mark.parametrize(
    ("hours", "wanted"),
    [
        (2 * 4 * 5.0, (2, 4, 1)),  # two blocks are the least
        (5 * 4 * 5.9, (4, 4, 3)),  # not 6 blocks: the best of fewer, 5 x (4 + 1) detects less
        (6 * 4 * 5.0, (6, 4, 1)),  # 6 blocks, with 4 twins only
        (6 * 4 * 6.0, (6, 5, 1)),
        (10 * 4 * 8.0, (10, 5, 3)),  # 10 x (5 + 3) detects less than 13 x (5 + 1) or 11 x (5 + 2)
        (20 * 4 * 8.0, (20, 5, 3)),
        (20 * 4 * 10.5, (20, 7, 3)),  # what 20 blocks leave over goes into tuning
        (1e6, (20, 10, 3)),
    ],
)
def test_sizes_by_the_documented_rule(sim: Any, hours: float, wanted: tuple[int, int, int]) -> None:
    assert sizes(sim, hours) == wanted


def test_keys_that_are_written_out_stay(sim: Any) -> None:
    assert sizes(sim, 20 * 4 * 9.0, "blocks") == (20, 7, 2)
    assert sizes(sim, 3 * 4 * 7.0, "twins", "confirm")[0] == 3
    assert sizes(sim, 400.0, "confirm") == (3, 7, 3)


def test_a_budget_for_nothing_is_refused_with_what_the_least_would_take(sim: Any) -> None:
    with pytest.raises(UserError, match=r"30 core hours pay for no study here: 2 blocks of 4 twins "
                       r"and 1 confirm pair take about 40\. Give more"):  # fmt: skip
        sizes(sim, 30.0)
