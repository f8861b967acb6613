"""fANOVA per arm: finds what matters, judges settings where they varied, stays silent on little."""

from __future__ import annotations

import math

import pytest

from aim_tune.protocol.importance import METHODS, importances
from aim_tune.spec.values import derive_seed


def noise(arm, request):
    return derive_seed(arm, request.position, request.content_hash) / 2**63 / 20


def by_lr(request):
    """Scores that depend on lr alone, and on chance."""
    return {
        arm: 0.9 - abs(math.log10(point.shared["lr"] / 0.02)) + noise(arm, request)
        for arm, point in request.arms.items()
    }


def by_width(request):
    """Scores that depend on the update width in the arms that have one, and on chance."""
    return {
        arm: 0.5 + point.addon.get("update_width", 0) / 100 + noise(arm, request)
        for arm, point in request.arms.items()
    }


def test_the_setting_that_matters_comes_first_in_every_arm(sim, history_of):
    study = sim.study_of(explore=0, blocks=10, twins=6)
    found = importances(study, history_of(study, trainer=by_lr))
    assert list(found) == ["baseline", "aim", "frozen"]
    assert set(found["baseline"]) == {"lr", "weight_decay"}
    assert set(found["aim"]) == {"lr", "weight_decay", "memory_shape", "update_width"}
    for shares in found.values():
        assert next(iter(shares)) == "lr"
        assert shares["lr"][0] > 0.7
        assert all(low <= mean <= high for mean, low, high in shares.values())
        assert sum(mean for mean, _, _ in shares.values()) == pytest.approx(1.0)


def test_add_on_settings_are_judged_in_explore_and_shared_ones_over_the_twins(sim, history_of):
    study = sim.study_of(explore=30, blocks=4, twins=5)

    def trainer(request):  # in explore the width decides, in the blocks lr
        return by_width(request) if request.stage == "explore" else by_lr(request)

    found = importances(study, history_of(study, trainer=trainer))
    assert set(found["baseline"]) == {"lr", "weight_decay"}
    aim = {name: mean for name, (mean, _, _) in found["aim"].items()}
    assert max(aim, key=aim.get) == "lr"
    assert aim["update_width"] > 10 * aim["memory_shape"]


def test_plain_search_is_judged_by_explore(sim, history_of):
    study = sim.study_of(arms=("aim",), explore=30, blocks=0)
    found = importances(study, history_of(study, trainer=by_width))
    assert next(iter(found["aim"])) == "update_width"


def test_few_trainings_and_arms_that_always_fail_are_left_out(sim, history_of):
    few = sim.study_of(explore=0, blocks=2, twins=4)
    assert importances(few, history_of(few)) == {}
    study = sim.study_of(explore=0, blocks=5, twins=4)
    found = importances(study, history_of(study, trainer=lambda r: {**by_lr(r), "aim": None}))
    assert list(found) == ["baseline", "frozen"]


@pytest.mark.parametrize(("twins", "score"), [(4, 0.5), (3, 0.1)])  # 12 of 0.1 have a variance
def test_equal_scores_make_nothing_important(sim, history_of, twins, score):
    study = sim.study_of(explore=0, blocks=5, twins=twins)
    history = history_of(study, trainer=lambda r: dict.fromkeys(r.arms, score))
    assert set(importances(study, history)["baseline"].values()) == {(0.0, 0.0, 0.0)}


def test_ped_anova_finds_a_continuous_setting_that_decides_and_is_another_answer(sim, history_of):
    study = sim.study_of(explore=0, blocks=10, twins=6)
    history = history_of(study, trainer=by_lr)
    assert set(METHODS) == {"fANOVA", "PED-ANOVA"}
    found = importances(study, history, "PED-ANOVA")
    for shares in found.values():
        assert next(iter(shares)) == "lr"
        assert sum(mean for mean, _, _ in shares.values()) == pytest.approx(1.0)
    assert found != importances(study, history)


def test_a_single_block_after_explore_is_never_left_out_whole(sim, history_of):
    study = sim.study_of(explore=14, blocks=1, twins=12)
    found = importances(study, history_of(study, trainer=by_lr))
    assert next(iter(found["baseline"])) == "lr"
    assert set(found["aim"]) == {"lr", "weight_decay", "memory_shape", "update_width"}


def test_of_many_trainings_whole_blocks_all_over_the_study_are_looked_at(
    sim, history_of, monkeypatch
):
    study = sim.study_of(arms=("baseline",), addon=None, explore=0, blocks=24, twins=3, confirm=0)
    history, seen = history_of(study, trainer=by_lr), []

    def counted(trials, params):
        seen.append(len(trials.trials))
        return METHODS["fANOVA"](trials, params)

    monkeypatch.setitem(METHODS, "counted", counted)
    monkeypatch.setattr("aim_tune.protocol.importance.MOST_WEIGHED", 12)  # of 72: every sixth block
    shares = importances(study, history, "counted")["baseline"]
    assert seen == [9, 9, 9, 9]
    assert next(iter(shares)) == "lr"
    assert shares["lr"][1] < shares["lr"][0] < shares["lr"][2]
