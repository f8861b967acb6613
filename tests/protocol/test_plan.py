"""The plan: counts by hand, the guessed spread, and what the study could find."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aim_tune.data.info import DataInfo
from aim_tune.protocol.plan import make_plan, power
from aim_tune.spec.space import Choice
from aim_tune.stats.looks import look_level
from aim_tune.stats.paired import MOST_BLOCKS, detectable_in_errors

INFO = DataInfo(
    name="digits",
    classes=10,
    class_names=tuple("0123456789"),
    image_shape=(1, 16, 16),
    pool=1000,
    test=797,
    train=200,
    val=300,
    digest="0" * 16,
)


def test_the_quick_start_counts_114_trainings(sim):
    study = sim.study_of(explore=8, blocks=6, twins=4, confirm=1)
    plan = make_plan(study, INFO)
    assert (plan.requests, plan.trainings) == (38, 114)
    assert plan.by_stage == {"explore": 24, "twin": 72, "confirm": 18, "export": 0}
    assert (plan.steps_per_training, plan.steps) == (100, 11_400)
    assert (plan.test_looks, plan.explore_at_once) == (18, 4)
    assert plan.seconds(5.0, slots=2) == pytest.approx(28.5)
    assert json.loads(json.dumps(plan.to_dict()))["trainings"] == 114


def test_the_spread_and_the_detectable_effect_by_hand(sim):
    plan = make_plan(sim.study_of(blocks=10, confirm=1), replace(INFO, test=1000))
    assert plan.seed_sd_points == pytest.approx(1.0)  # 100 sqrt(0.2 / 2000)
    # B = 10 finds 1.00 sd of the block differences: two confirm runs (2) and the search (0.75)
    assert plan.mde_points == pytest.approx(2.75**0.5, rel=0.01)
    twice = make_plan(sim.study_of(blocks=10, confirm=2), replace(INFO, test=1000))
    assert twice.mde_points == pytest.approx(plan.mde_points * (1.75 / 2.75) ** 0.5)


def test_the_detectable_effect_is_found_in_80_percent(sim):
    study = sim.study_of(blocks=10)
    plan = make_plan(study, INFO)
    assert power(study, plan.mde_points, seed_sd=plan.seed_sd_points) == pytest.approx(0.8)
    assert power(study, -plan.mde_points, seed_sd=plan.seed_sd_points) == pytest.approx(0.8)


def test_the_planner_says_how_many_blocks_find_an_effect(sim):
    study = sim.study_of(blocks=6)
    plan = make_plan(study, INFO, effect=0.5)
    at = lambda blocks: make_plan(sim.study_of(blocks=blocks), INFO).mde_points  # noqa: E731
    assert at(plan.effect_blocks) <= 0.5 < at(plan.effect_blocks - 1)
    assert plan.effect_power == pytest.approx(power(study, 0.5, seed_sd=plan.seed_sd_points))
    assert plan.effect_power < 0.8
    assert make_plan(study, INFO, effect=0.001).effect_blocks is None


def test_no_effect_is_planned_where_none_is_asked_or_compared(sim):
    assert make_plan(sim.study_of(), INFO).effect_blocks is None
    plan = make_plan(sim.study_of(arms=("aim",)), INFO, effect=0.5)
    assert (plan.effect_power, plan.effect_blocks) == (None, None)
    assert power(sim.study_of(arms=("aim",)), 0.5, seed_sd=1.0) == 0.0


@pytest.mark.parametrize(("test", "reachable"), [(1000, False), (100_000, True)])
def test_equivalence_is_reachable_only_with_enough_test_examples(sim, test, reachable):
    plan = make_plan(sim.study_of(blocks=10), replace(INFO, test=test))
    assert plan.equivalence_reachable is reachable


@pytest.mark.parametrize("change", [{"blocks": 0}, {"arms": ("aim",)}, {"confirm": 0}])
def test_where_nothing_is_compared_no_effect_is_promised(sim, change):
    plan = make_plan(sim.study_of(**change), INFO)
    assert plan.mde_points is None
    assert plan.equivalence_reachable is None


def test_epochs_are_counted_in_steps_of_the_middle_batch_size(sim):
    study = sim.study_of()
    recipe = replace(study.recipe, steps=None, epochs=3, batch_size=32)
    assert make_plan(replace(study, recipe=recipe), INFO).steps_per_training == 19  # 600 images
    searched = sim.study_of(shared={**sim.shared, "batch_size": Choice((16, 64))})
    plan = make_plan(replace(searched, recipe=recipe), INFO)
    assert plan.steps_per_training == 38


def test_shortened_twins_count_for_the_share_they_are_trained(sim):
    study = sim.study_of(explore=0, blocks=3, twins=4, confirm=2)
    short = replace(study, protocol=replace(study.protocol, search_fraction=0.2))
    assert make_plan(study, INFO).steps == 3 * 3 * (4 + 2) * 100
    assert make_plan(short, INFO).steps == 3 * 3 * (0.2 * 4 + 2) * 100


def test_planned_looks_cost_some_of_what_can_be_detected(sim):
    study = sim.study_of(blocks=20)
    looks = replace(study, protocol=replace(study.protocol, looks=(8, 12, 20)))
    plain, planned = make_plan(study, INFO, effect=1.0), make_plan(looks, INFO, effect=1.0)
    level = look_level((8, 12, 20))
    ratio = detectable_in_errors(19, level) / detectable_in_errors(19)
    assert planned.mde_points == pytest.approx(plain.mde_points * ratio)
    assert 1.1 < ratio < 1.2
    assert planned.effect_power < plain.effect_power
    assert planned.effect_blocks > plain.effect_blocks


def test_what_is_out_of_reach_is_said_with_what_is_in_reach(sim):
    study = sim.study_of(blocks=6)
    plan = make_plan(study, INFO, effect=0.01)
    assert plan.effect_blocks is None
    most = replace(study, protocol=replace(study.protocol, blocks=MOST_BLOCKS))
    assert plan.reach_points == make_plan(most, INFO).mde_points
    assert make_plan(study, INFO, effect=1.01 * plan.reach_points).effect_blocks <= MOST_BLOCKS


def test_arms_that_wait_and_the_measurement_are_requests_of_their_own(sim):
    study = sim.study_of(explore=0, blocks=3, twins=4, confirm=1)
    later = replace(study, protocol=replace(study.protocol, attribution="after_better"))
    assert (make_plan(study, INFO).requests, make_plan(later, INFO).requests) == (15, 30)
    assert make_plan(later, INFO).trainings == make_plan(study, INFO).trainings == 45
    timed = replace(study, arms=(*study.arms, "time_matched"))
    assert make_plan(timed, INFO).requests == 16
