"""When a study is judged and at which level: published constants, hand-made looks, all looks together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aim_tune.ledger import History
from aim_tune.stats.looks import Look, look_level, looks_of
from aim_tune.stats.paired import ADDED, Sample
from aim_tune.stats.simulate import example_study


def planned(looks=(), blocks=20):
    study = example_study(blocks=blocks)
    return replace(study, protocol=replace(study.protocol, looks=looks))


def test_one_look_is_judged_at_5_percent():
    assert look_level((10,)) == pytest.approx(0.05, abs=0.001)


def test_the_level_of_5_10_20_is_the_published_one():
    assert look_level((5, 10, 20)) == pytest.approx(0.0196, abs=0.0004)  # evidence: fairness, 3.4


def test_with_many_blocks_the_level_is_pococks():
    """Pocock 1977: 0.0294 for two, 0.0221 for three equally spaced looks at a normal mean."""
    assert look_level((500, 1000)) == pytest.approx(0.0294, abs=0.0005)
    assert look_level((500, 1000, 1500)) == pytest.approx(0.0221, abs=0.0005)


def test_all_looks_together_err_in_5_percent_and_unadjusted_ones_in_more():
    """Its own draws, the intervals of the real Sample: 4,000 null studies of 8, 12 and 20 blocks."""
    rng, level = np.random.default_rng(7), look_level((8, 12, 20))
    wrong = {level: 0, 0.05: 0}
    for d in rng.normal(0, 1, (4000, 20)):
        for alpha in wrong:
            halves = [Sample(differences=d[:n]).half_width(alpha) for n in (8, 12, 20)]
            wrong[alpha] += any(
                abs(d[:n].mean()) > h for n, h in zip((8, 12, 20), halves, strict=True)
            )
    assert 0.04 <= wrong[level] / 4000 <= 0.06
    assert wrong[0.05] / 4000 > 0.09


def test_without_planned_looks_only_the_end_is_judged_without_a_surcharge():
    study = planned()
    assert list(looks_of(study, History(), tuple(range(20)))) == [Look(blocks=tuple(range(20)))]
    assert list(looks_of(study, History(), (0, 1, 3))) == [
        Look(blocks=(0, 1, 3), anytime=True, interim=True)
    ]


def test_a_look_takes_the_first_blocks_whatever_else_is_done():
    """11 whole blocks, block 9 still running: the look at 8 counts, the one at 12 does not."""
    study, level = planned((8, 12, 20)), look_level((8, 12, 20))
    blocks = (*range(9), 10, 11)
    first, now = looks_of(study, History(), blocks)
    assert first == Look(blocks=tuple(range(8)), alpha=level, number=1, last=False)
    assert now == Look(blocks=blocks, anytime=True, interim=True)


def test_a_look_waits_for_all_of_its_blocks():
    (now,) = looks_of(planned((8, 12, 20)), History(), (*range(7), 8, 9))
    assert (now.interim, now.number) == (True, None)


def test_the_last_look_is_the_end():
    looks = list(looks_of(planned((8, 12, 20)), History(), tuple(range(20))))
    assert [(len(x.blocks), x.number, x.last, x.interim) for x in looks] == [
        (8, 1, False, False), (12, 2, False, False), (20, 3, True, False),
    ]  # fmt: skip


def test_blocks_added_later_make_planned_looks_void():
    history = History()
    history.apply({"event": "extended", "time": 0.0, "blocks": 24})
    (now,) = looks_of(planned((8, 12, 20)), history, tuple(range(20)))
    assert (now.anytime, now.interim, now.number, now.alpha) == (True, True, None, ADDED)


def closed(blocks):
    history = History()
    gate = {"event": "gate", "time": 0.0, "gate": f"block/{blocks}", "blocks": blocks}
    history.apply({**gate, "open": False, "verdict": None, "reason": "no more hours"})
    return history


def test_a_budget_that_is_used_up_ends_the_study_at_the_level_of_the_plan():
    history, blocks = closed(10), tuple(range(10))
    assert list(looks_of(planned(), history, blocks)) == [Look(blocks=blocks)]
    level = look_level((8, 12, 20))
    assert list(looks_of(planned((8, 12, 20)), history, blocks)) == [
        Look(blocks=tuple(range(8)), alpha=level, number=1, last=False),
        Look(blocks=blocks, alpha=level),
    ]
    (now,) = looks_of(planned(), history, blocks[:9])
    assert now.interim
