from __future__ import annotations

import numpy as np

from aim_tune.data.splits import _mixed, key_ids, ranking


def test_a_ranking_is_a_permutation_fixed_by_seed_and_purpose() -> None:
    ids = key_ids(1000)
    first = ranking(ids, 7, purpose="split")
    assert sorted(first.tolist()) == list(range(1000))
    assert (ranking(ids, 7, purpose="split") == first).all()
    assert (ranking(ids, 8, purpose="split") != first).any()
    assert (ranking(ids, 7, purpose="test") != first).any()


def test_the_hash_is_splitmix64() -> None:
    published = [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]  # its outputs for seed 0
    golden = 0x9E3779B97F4A7C15
    states = np.array([k * golden % 2**64 for k in range(3)], dtype=np.uint64)
    assert _mixed(states).tolist() == published


def test_the_order_of_a_known_seed_stays_as_it_is() -> None:
    # a change here changes the split of every study
    assert ranking(key_ids(1000), 7, purpose="split")[:5].tolist() == [51, 483, 942, 454, 230]


def test_every_position_is_equally_likely_to_come_first() -> None:
    ids = key_ids(10)
    first = [int(ranking(ids, seed, purpose="split")[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert counts.min() > 150  # 200 expected, sd 13.4
    assert counts.max() < 250


def test_a_new_key_leaves_the_order_of_the_others() -> None:
    keys = [f"train/cat/{n}.png" for n in range(50)]
    before = [keys[i] for i in ranking(key_ids(keys), 3, purpose="split")]
    more = ["train/ant/0.png", *keys]
    after = [more[i] for i in ranking(key_ids(more), 3, purpose="split")]
    assert [k for k in after if k in keys] == before
