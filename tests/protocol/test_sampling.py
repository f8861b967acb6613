"""Domains: draws stay in range, round-trip through Optuna, and TPE is told exactly what it may know."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from optuna.trial import TrialState

from aim_tune.protocol.sampling import (
    Stopped,
    TpeSearch,
    decode,
    distributions,
    draw,
    encode,
    middle,
    nearest,
    varies,
)
from aim_tune.spec.space import Choice, Fixed, IntUniform, Uniform

SPACE = {
    "width": IntUniform(1, 64, log=True),
    "lr": Uniform(1e-4, 1e-1, log=True),
    "shape": Choice(((2, 2, 8), (4, 4, 16))),
    "clip": Choice((None, 1.0)),
    "depth": IntUniform(2, 5),
    "momentum": Uniform(0.8, 0.9),
    "write": Fixed("sample"),
    "only": Choice((7,)),
    "point": Uniform(0.5, 0.5),
}


def test_middle_is_geometric_for_logarithmic_ranges_and_the_first_option_of_a_choice():
    values = middle(SPACE)
    assert list(values) == sorted(SPACE)
    assert values == {
        "clip": None,
        "depth": 4,
        "lr": pytest.approx(math.sqrt(1e-5)),
        "momentum": pytest.approx(0.85),
        "only": 7,
        "point": 0.5,
        "shape": [2, 2, 8],
        "width": 8,
        "write": "sample",
    }


def test_draws_cover_every_range_and_never_leave_it():
    generator = np.random.default_rng(0)
    draws = [draw(SPACE, generator) for _ in range(2000)]
    assert {d["depth"] for d in draws} == {2, 3, 4, 5}
    assert {str(d["shape"]) for d in draws} == {"[2, 2, 8]", "[4, 4, 16]"}
    assert {d["clip"] for d in draws} == {None, 1.0}
    assert (min(d["width"] for d in draws), max(d["width"] for d in draws)) == (1, 64)
    assert all(1e-4 <= d["lr"] <= 1e-1 for d in draws)
    below = sum(d["lr"] < math.sqrt(1e-5) for d in draws)
    assert 900 < below < 1100  # half of a logarithmic range lies below its geometric middle
    assert all(type(d["width"]) is int and type(d["lr"]) is float for d in draws)


def test_the_same_generator_seed_gives_the_same_draw_whatever_the_order_of_keys():
    turned = dict(reversed(SPACE.items()))
    one = draw(SPACE, np.random.default_rng(5))
    assert draw(turned, np.random.default_rng(5)) == one


def test_only_what_varies_reaches_optuna_and_values_come_back():
    assert not any(varies(SPACE[name]) for name in ("write", "only", "point"))
    assert list(distributions(SPACE)) == ["clip", "depth", "lr", "momentum", "shape", "width"]
    values = draw(SPACE, np.random.default_rng(1))
    params = encode(SPACE, values)
    assert params["shape"] == str(values["shape"])  # a list is no category in Optuna: JSON text is
    assert decode(SPACE, params) == values


def states(search: TpeSearch) -> str:
    return "".join(trial.state.name[0] for trial in search.study.trials)


def test_exactly_the_results_up_to_the_lag_are_told_and_the_rest_are_running():
    search = TpeSearch(SPACE, trials=8, lag=3, starts=[middle(SPACE)])
    scores = [0.5, None, math.nan, math.inf, 0.7, 0.6, 0.9, 0.8]
    seen = []
    for seed in range(8):
        search.ask(scores.__getitem__, seed=seed)
        seen.append(states(search))
    assert seen == ["R", "RR", "RRR", "CRRR", "CFRRR", "CFFRRR", "CFFFRRR", "CFFFCRRR"]
    complete = [t.value for t in search.study.trials if t.state is TrialState.COMPLETE]
    assert complete == [0.5, 0.7]


def test_the_proposal_depends_on_the_seed_and_on_what_was_told():
    def last(score: float, seed: int) -> dict:
        search = TpeSearch(SPACE, trials=6, lag=1)
        for i in range(6):
            point = search.ask(lambda number: score * number, seed=seed + i)
        return point

    assert last(1.0, 0) == last(1.0, 0)
    assert last(1.0, 0) != last(1.0, 100)
    assert last(1.0, 0) != last(-1.0, 0)


def test_tpe_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = TpeSearch(SPACE, trials=30, lag=2, starts=[middle(SPACE)])
        for seed in range(30):
            search.ask(lambda number: number / 30, seed=seed)


def test_a_space_without_anything_to_choose_proposes_its_one_point():
    search = TpeSearch({"write": Fixed("batch")}, trials=3, lag=1, starts=[{"write": "batch"}])
    asked = [search.ask(lambda number: 0.5, seed=seed) for seed in range(3)]
    assert asked == [{"write": "batch"}] * 3


def test_a_stopped_trial_is_told_as_pruned_with_the_pass_it_reached():
    search = TpeSearch(SPACE, trials=4, lag=1)
    values = [0.5, Stopped(0.3, 2), None]
    for seed in range(4):
        search.ask(values.__getitem__, seed=seed)
    assert states(search) == "CPFR"
    pruned = search.study.trials[1]
    assert pruned.intermediate_values == {2: 0.3}


def test_two_objectives_are_told_in_their_directions_and_half_a_result_is_a_failure():
    search = TpeSearch(SPACE, trials=4, lag=1, directions=("maximize", "minimize"))
    values = [[0.5, 12.0], [0.6, math.nan], [0.7, 13.0]]
    for seed in range(4):
        search.ask(values.__getitem__, seed=seed)
    assert states(search) == "CFCR"
    assert [t.values for t in search.study.best_trials] == [[0.5, 12.0], [0.7, 13.0]]


@pytest.mark.parametrize(
    ("domain", "wanted", "found"),
    [
        (Choice(((4, 4, 16), (4, 4, 32), (2, 2, 64))), [7, 7, 1024], [4, 4, 32]),
        (Choice((8, 32, 16)), 16, 16),
        (Choice((8, 32)), 15, 8),  # ratio 1.9 against 2.1
        (Choice(("relu", "tanh")), "sigmoid", "relu"),
        (Choice(("relu", "sigmoid")), "sigmoid", "sigmoid"),
        (Choice((False, True)), True, True),
        (Fixed("batch"), "sample", "batch"),
        (IntUniform(4, 12), 16, 12),
        (Uniform(1e-3, 1e-1, log=True), 1e-5, 1e-3),
        (Uniform(0.0, 1.0), 0.3, 0.3),
    ],
)
def test_the_nearest_allowed_value(domain, wanted, found):
    assert nearest({"x": domain}, {"x": wanted}) == {"x": found}
    assert nearest({"x": domain}, {}) == middle({"x": domain})
