"""Explore's finalists: the best designs trained again with fresh seeds, before one is chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aim_tune.data.info import DataInfo
from aim_tune.protocol import DONE, Machine
from aim_tune.protocol.plan import make_plan
from aim_tune.spec.study import Study


def with_finalists(study: Study, count: int) -> Study:
    explore = replace(study.protocol.explore, finalists=count)
    return replace(study, protocol=replace(study.protocol, explore=explore))


def finals_of(told, trials):
    rows = {int(p.split("/")[1]): r for p, (r, _) in told.items() if p.startswith("explore/")}
    return [rows[i] for i in sorted(rows) if i >= trials]


def test_the_best_designs_are_trained_again_on_three_fresh_seeds(sim):
    study = with_finalists(sim.study_of(explore=8, blocks=2), 2)
    told = sim.run_study(Machine(study))
    assert len(told) == study.requests_planned == 8 + 6 + 2 * (4 + 2)
    finals = finals_of(told, 8)
    designs = [str(r.arms["aim"].addon) for r in finals]
    assert designs == [designs[0], designs[1]] * 3  # seed by seed
    assert designs[0] != designs[1]
    streams = [tuple(sorted(r.streams.items())) for r in finals]
    assert streams[0::2] == streams[1::2]  # the finalists of one seed are compared on one seed
    assert len(set(streams)) == 3
    used = {tuple(sorted(r.streams.items())) for p, (r, _) in told.items() if r not in finals}
    assert not used & set(streams)


def test_the_design_is_the_finalist_with_the_best_mean_over_the_fresh_seeds(sim):
    """The trials' own scores do not count again: there the first of them had its luck."""
    study, finals = with_finalists(sim.study_of(explore=8, blocks=1), 2), {}

    def trainer(request):
        number = int(request.position.split("/")[1]) - 8 if request.stage == "explore" else -1
        if number < 0:
            return sim.train(request)
        finals[number] = request.arms["aim"].addon
        means = [0.5, 0.6, 0.9, 0.6, 0.2, 0.6]  # 0.53 of the first, 0.60 of the second
        return dict.fromkeys(request.arms, means[number])

    machine = Machine(study)
    sim.run_study(machine, trainer=trainer)
    assert machine.design == finals[1] != finals[0]


def test_a_finalist_that_failed_once_is_not_chosen(sim):
    study = with_finalists(sim.study_of(explore=8, blocks=1), 2)
    chosen = {}

    def trainer(request):
        number = int(request.position.split("/")[1]) - 8 if request.stage == "explore" else -1
        if number >= 0:
            chosen.setdefault(number % 2, request.arms["aim"].addon)
            lost = number == 2
            return dict.fromkeys(request.arms, None if lost else 0.9 - 0.5 * (number % 2))
        return sim.train(request)

    machine = Machine(study)
    sim.run_study(machine, trainer=trainer)
    assert machine.design == chosen[1]


def test_the_sequence_does_not_depend_on_timing(sim):
    study = with_finalists(sim.study_of(explore=8, blocks=2), 3)
    texts = {
        sim.requests_text(sim.run_study(Machine(study), slots=slots, seed=slots))
        for slots in (1, 2, 5)
    }
    assert len(texts) == 1


@pytest.mark.parametrize("arms", [("baseline",), ("aim",), ("baseline", "aim", "frozen")])
def test_too_few_designs_are_filled_with_duplicates(sim, arms):
    addon = {} if arms == ("baseline",) else {"write": sim.addon["write"]}  # one design only
    study = with_finalists(sim.study_of(arms=arms, explore=4, blocks=0, addon=addon), 9)
    machine = Machine(study)
    told = sim.run_study(machine)
    assert len(told) == study.requests_planned == 4 + 3 * 4
    assert machine.ask() is DONE
    hashes = {r.content_hash for r in finals_of(told, 4)}
    assert len(hashes) == (12 if arms == ("baseline",) else 3)  # repeats are reused, not retrained


def test_a_study_without_finalists_keeps_its_hash_and_its_requests(sim):
    study = sim.study_of(explore=8)
    assert "finalists" not in study.identity()["protocol"]["explore"]
    assert with_finalists(study, 2).study_hash != study.study_hash
    again = Study.from_dict(with_finalists(study, 2).to_dict())
    assert again.protocol == with_finalists(study, 2).protocol
    older = study.to_dict()
    older["protocol"]["explore"].pop("finalists")
    assert Study.from_dict(older).protocol == study.protocol


def test_the_plan_counts_the_finalists(sim):
    info = DataInfo(
        name="digits", classes=10, class_names=tuple("0123456789"), image_shape=(1, 16, 16),
        pool=1000, test=797, train=200, val=300, digest="0" * 16,
    )  # fmt: skip
    plan = make_plan(with_finalists(sim.study_of(explore=8), 2), info)
    assert plan.by_stage["explore"] == 3 * (8 + 6)
    assert make_plan(sim.study_of(explore=8), info).by_stage["explore"] == 24
