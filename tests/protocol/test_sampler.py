"""protocol.sampler: a block's twins are drawn at random or proposed by TPE, whatever their number."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aim_tune.protocol import WAIT, Machine
from aim_tune.spec.study import Study


def with_sampler(study: Study, sampler: str, **changes) -> Study:
    return replace(study, protocol=replace(study.protocol, sampler=sampler, **changes))


def points(sim, study: Study) -> list[dict]:
    told = sim.run_study(Machine(study))
    return [
        told[f"block/0/twin/{i}"][0].arms["baseline"].to_dict() for i in range(study.protocol.twins)
    ]


@pytest.mark.parametrize(("twins", "same_as"), [(10, "random"), (11, "tpe")])
def test_auto_is_random_up_to_ten_twins_and_tpe_beyond(sim, twins, same_as):
    study = sim.study_of(explore=0, blocks=1, twins=twins)
    other = {"random": "tpe", "tpe": "random"}[same_as]
    found = points(sim, study)
    assert found == points(sim, with_sampler(study, same_as))
    assert found != points(sim, with_sampler(study, other))


def test_tpe_waits_for_results_and_random_draws_do_not(sim):
    study = sim.study_of(explore=0, blocks=1, twins=8, lag=4)
    asked = {"tpe": 4, "random": 8}
    for sampler, most in asked.items():
        machine = Machine(with_sampler(study, sampler))
        answers = [machine.ask() for _ in range(most)]
        assert WAIT not in answers
        assert machine.ask() is WAIT


def test_a_study_that_leaves_it_out_keeps_its_hash_and_another_sampler_is_another_study(sim):
    study = sim.study_of()
    assert "sampler" not in study.identity()["protocol"]
    assert with_sampler(study, "random").study_hash != study.study_hash
    assert Study.from_dict(with_sampler(study, "tpe").to_dict()).protocol.sampler == "tpe"
