"""The ask/tell machine: one sequence whatever the timing, and the rules of explore, blocks, confirm."""

from __future__ import annotations

import json
import math
import time
from collections import Counter

import pytest

from aim_tune.protocol import DONE, WAIT, Machine
from aim_tune.spec.request import STREAMS, Request
from aim_tune.spec.space import Choice, Fixed


@pytest.mark.parametrize("twins", [4, 12], ids=["random twins", "TPE twins"])
def test_slots_and_completion_order_do_not_change_any_request(sim, twins):
    study = sim.study_of(explore=12, twins=twins, blocks=2)
    one = sim.run_study(Machine(study), slots=1)
    assert len(one) == study.requests_planned
    for slots, seed in [(2, 1), (6, 2), (6, 3), (40, 4)]:
        many = sim.run_study(Machine(study), slots=slots, seed=seed)
        assert sim.requests_text(many) == sim.requests_text(one)


@pytest.mark.parametrize("kill_at", [1, 5, 9, 14, 20, 23])
def test_a_new_machine_told_the_recorded_results_goes_on_identically(sim, kill_at):
    study = sim.study_of()
    whole = sim.run_study(Machine(study), slots=3, seed=1)
    recorded = sim.run_study(Machine(study), slots=3, seed=2, stop_after=kill_at)

    def resumed(request: Request) -> dict[str, float | None]:
        if request.position in recorded:
            before, scores = recorded[request.position]
            assert before.content_hash == request.content_hash
            return scores
        return sim.train(request)

    again = sim.run_study(Machine(study), slots=2, seed=3, trainer=resumed)
    assert sim.requests_text(again) == sim.requests_text(whole)


def test_asking_beyond_the_lag_waits_until_the_result_it_needs_is_told(sim):
    machine = Machine(sim.study_of(explore=8, lag=3))
    first = [machine.ask() for _ in range(3)]
    assert [r.position for r in first] == ["explore/0", "explore/1", "explore/2"]
    assert machine.ask() is WAIT
    machine.tell("explore/2", sim.train(first[2]))
    assert machine.ask() is WAIT  # explore/3 needs the result of explore/0
    machine.tell("explore/0", sim.train(first[0]))
    assert machine.ask().position == "explore/3"
    assert machine.ask() is WAIT


def test_lag_1_knows_every_result_and_a_larger_lag_fewer(sim):
    points = {
        lag: sim.requests_text(sim.run_study(Machine(sim.study_of(explore=14, lag=lag, blocks=0))))
        for lag in (1, 4)
    }
    assert points[1] != points[4]


def test_results_beyond_the_lag_do_not_reach_a_request_that_is_asked_late(sim):
    study = sim.study_of(explore=12, lag=4, blocks=0)
    early, late = Machine(study), Machine(study)
    asked = []
    for _ in range(8):
        asked.append(early.ask())
        if len(asked) >= 4:
            early.tell(asked[-4].position, sim.train(asked[-4]))
    for request in asked[:8]:  # the same, told at once: far more is known at each ask
        assert late.ask().to_dict() == request.to_dict()
        late.tell(request.position, sim.train(request))


def test_blocks_wait_for_the_design(sim):
    machine = Machine(sim.study_of(explore=3, lag=3))
    asked = [machine.ask() for _ in range(3)]
    assert machine.ask() is WAIT
    for request in asked:
        assert machine.design is None
        machine.tell(request.position, sim.train(request))
    assert machine.ask().position == "block/0/twin/0"


def test_the_design_is_the_best_by_the_mean_of_the_add_on_arms_and_stays_fixed(sim):
    def trainer(request: Request) -> dict[str, float | None]:
        if request.stage != "explore":
            return sim.train(request)
        number = int(request.position.split("/")[1])
        # aim alone would choose 1, the baseline 2; the mean of aim and frozen chooses 3
        aim, frozen = {1: (0.99, 0.1), 3: (0.7, 0.7)}.get(number, (0.5, 0.5))
        return {"baseline": 0.999 if number == 2 else 0.1, "aim": aim, "frozen": frozen}

    told = sim.run_study(Machine(sim.study_of()), slots=2, trainer=trainer)
    design = told["explore/3"][0].arms["aim"].addon
    later = [r for r, _ in told.values() if r.stage != "explore"]
    assert {json.dumps(r.arms[a].addon) for r in later for a in ("aim", "frozen")} == {
        json.dumps(design)
    }
    assert all(r.arms["baseline"].addon == {} for r in later)


def test_without_explore_every_twin_draws_the_add_on_settings(sim):
    told = sim.run_study(Machine(sim.study_of(explore=0, blocks=4)))
    designs = {json.dumps(r.arms["aim"].addon) for r, _ in told.values() if r.stage == "twin"}
    assert len(designs) > 3


def test_the_arms_of_a_twin_share_streams_and_the_shared_point(sim):
    told = sim.run_study(Machine(sim.study_of()))
    for request, _ in told.values():
        assert tuple(request.arms) == ("baseline", "aim", "frozen")
        assert set(request.streams) == set(STREAMS)
        if request.stage != "confirm":
            assert len({json.dumps(p.shared) for p in request.arms.values()}) == 1
            assert request.arms["aim"] == request.arms["frozen"]


def test_a_block_has_one_split_and_all_other_streams_are_fresh(sim):
    told = sim.run_study(Machine(sim.study_of()))
    splits: dict[int, set[int]] = {}
    others = Counter()
    for request, _ in told.values():
        if request.block is not None:
            splits.setdefault(request.block, set()).add(request.streams["split"])
            others.update(request.streams[s] for s in STREAMS if s != "split")
    assert [len(s) for s in splits.values()] == [1, 1, 1]
    assert len(set.union(*splits.values())) == 3
    assert set(others.values()) == {1}


def test_explore_shares_one_set_of_streams_so_that_equal_points_are_duplicates(sim):
    tiny = {"lr": Choice((0.01, 0.02, 0.04))}
    study = sim.study_of(
        explore=30, blocks=0, shared=tiny, addon={"write": Choice(("sample", "batch"))}
    )
    told = sim.run_study(Machine(study), slots=4)
    assert len(told) == 30
    assert len({r.content_hash for r, _ in told.values()}) <= 6


def test_confirm_uses_each_arms_own_best_point_of_the_block(sim):
    told = sim.run_study(Machine(sim.study_of()), slots=3)
    for block in range(3):
        twins = [told[f"block/{block}/twin/{i}"] for i in range(4)]
        for arm in ("baseline", "aim", "frozen"):
            done = [(s[arm], r) for r, s in twins if s[arm] is not None]
            best = max(done, key=lambda pair: pair[0])[1].arms[arm]
            for number in range(2):
                request = told[f"block/{block}/confirm/{number}"][0]
                assert request.arms[arm] == best
                assert request.test
    assert not any(r.test for r, _ in told.values() if r.stage != "confirm")


def test_confirm_pairs_come_before_twins_of_later_blocks(sim):
    machine = Machine(sim.study_of(explore=0))
    twins = [machine.ask() for _ in range(4)]
    assert machine.ask().position == "block/1/twin/0"  # nothing of block 0 is ready: no idle slot
    for request in twins:
        machine.tell(request.position, sim.train(request))
    assert machine.ask().position == "block/0/confirm/0"
    assert machine.ask().position == "block/0/confirm/1"
    assert machine.ask().position == "block/1/twin/1"


def test_one_slot_finishes_a_block_before_the_next_begins(sim):
    positions = list(sim.run_study(Machine(sim.study_of(explore=0, blocks=2))))
    assert positions == [
        *(f"block/0/twin/{i}" for i in range(4)),
        *(f"block/0/confirm/{i}" for i in range(2)),
        *(f"block/1/twin/{i}" for i in range(4)),
        *(f"block/1/confirm/{i}" for i in range(2)),
    ]


def test_every_arm_goes_first_equally_often(sim):
    told = sim.run_study(Machine(sim.study_of(explore=6, blocks=3, twins=5, confirm=1)))
    for stage, each in [("explore", 2), ("twin", 5), ("confirm", 1)]:
        first = Counter(r.arm_order()[0] for r, _ in told.values() if r.stage == stage)
        assert first == {"baseline": each, "aim": each, "frozen": each}


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_failures_never_reach_optuna_as_a_result(sim, bad):
    study = sim.study_of(explore=14, blocks=1, twins=12)
    told = sim.run_study(
        Machine(study),
        slots=3,
        trainer=lambda request: {
            arm: bad if int(request.position.split("/")[-1]) % 3 == 0 else value
            for arm, value in {"baseline": 0.5, "aim": 0.6, "frozen": 0.7}.items()
        },
    )
    assert len(told) == study.requests_planned
    number = int(told["block/0/confirm/0"][0].position[-1])
    assert number == 0
    best = told["block/0/confirm/0"][0].arms["aim"]
    assert best == told["block/0/twin/1"][0].arms["aim"]  # the first that has a score


def test_a_study_in_which_everything_fails_still_ends_with_equal_budgets(sim):
    study = sim.study_of()
    told = sim.run_study(
        Machine(study), slots=3, trainer=lambda request: dict.fromkeys(request.arms)
    )
    assert len(told) == study.requests_planned
    first = told["explore/0"][0].arms["aim"].addon
    assert told["block/2/confirm/1"][0].arms["frozen"].addon == first
    confirm = told["block/2/confirm/1"][0]
    assert confirm.arms["aim"] == told["block/2/twin/0"][0].arms["aim"]


def test_explore_finds_the_better_region(sim):
    told = sim.run_study(Machine(sim.study_of(explore=40, blocks=0)), slots=4)
    last = [r for r, _ in told.values() if int(r.position.split("/")[1]) >= 25]
    wide = sum(r.arms["aim"].addon["update_width"] == 32 for r in last)
    assert wide > len(last) / 2  # one in three by chance


@pytest.mark.parametrize("arms", [("aim",), ("baseline",), ("baseline", "aim")])
@pytest.mark.parametrize(("explore", "blocks"), [(5, 0), (0, 2), (5, 2)])
def test_plain_search_and_fewer_arms_run_to_the_end(sim, arms, explore, blocks):
    addon = sim.addon if "aim" in arms else None
    study = sim.study_of(arms=arms, explore=explore, blocks=blocks, addon=addon)
    told = sim.run_study(Machine(study), slots=2)
    assert len(told) == study.requests_planned
    assert all(tuple(r.arms) == arms for r, _ in told.values())


def test_no_trials_at_all_is_done_at_once(sim):
    assert Machine(sim.study_of(explore=0, blocks=0)).ask() is DONE


def test_blocks_without_confirm_pairs_run_to_the_end(sim):
    assert len(sim.run_study(Machine(sim.study_of(explore=0, confirm=0)), slots=5)) == 12


def test_more_blocks_leave_the_earlier_requests_as_they_were(sim):
    few = sim.run_study(Machine(sim.study_of(blocks=2)))
    more = sim.run_study(Machine(sim.study_of(blocks=4)))
    assert sim.requests_text({p: more[p] for p in few}) == sim.requests_text(few)


def test_another_seed_gives_other_points_and_other_streams(sim):
    one, two = (sim.run_study(Machine(sim.study_of(seed=s, explore=0))) for s in (0, 1))
    for position in one:
        assert one[position][0].streams["order"] != two[position][0].streams["order"]
    assert one["block/0/twin/0"][0].arms != two["block/0/twin/0"][0].arms


def test_the_order_of_keys_in_the_study_file_does_not_matter(sim):
    turned = sim.study_of(
        shared=dict(reversed(sim.shared.items())), addon=dict(reversed(sim.addon.items()))
    )
    plain = sim.study_of()
    assert turned.study_hash == plain.study_hash
    assert sim.requests_text(sim.run_study(Machine(turned))) == sim.requests_text(
        sim.run_study(Machine(plain))
    )


def test_requests_survive_json(sim):
    fixed = {**sim.addon, "write": Fixed(("a", "tuple"))}
    for request, _ in sim.run_study(Machine(sim.study_of(addon=fixed))).values():
        again = Request.from_dict(json.loads(json.dumps(request.to_dict())))
        assert again == request
        assert again.content_hash == request.content_hash


def test_telling_what_was_not_asked_or_twice_or_for_other_arms_is_refused(sim):
    machine = Machine(sim.study_of())
    with pytest.raises(AssertionError, match="explore/0 was not asked"):
        machine.tell("explore/0", {})
    request = machine.ask()
    with pytest.raises(AssertionError, match=r"scores of \['aim'\]"):
        machine.tell("explore/0", {"aim": 0.5})
    machine.tell("explore/0", sim.train(request))
    with pytest.raises(AssertionError, match="told before"):
        machine.tell("explore/0", sim.train(request))


def test_done_comes_only_when_everything_is_told(sim):
    machine = Machine(sim.study_of(explore=2, blocks=0))
    first, second = machine.ask(), machine.ask()
    assert machine.ask() is WAIT
    machine.tell(first.position, sim.train(first))
    assert machine.ask() is WAIT
    machine.tell(second.position, sim.train(second))
    assert machine.ask() is DONE


def test_cost_of_ask_and_tell_is_flat_in_blocks(sim):
    def seconds(blocks: int) -> float:
        machine = Machine(sim.study_of(explore=0, blocks=blocks, twins=5, confirm=1))
        scores = {"baseline": 0.5, "aim": 0.6, "frozen": 0.7}
        asked, start = [], time.process_time()
        while (answer := machine.ask()) not in (WAIT, DONE):  # the twins of all blocks at once
            asked.append(answer.position)
        for position in asked:
            machine.tell(position, scores)
        confirmed = 0
        while (answer := machine.ask()) is not DONE:
            machine.tell(answer.position, scores)
            confirmed += 1
        assert (len(asked), confirmed) == (blocks * 5, blocks)
        return time.process_time() - start

    seconds(5)
    few, many = seconds(100), seconds(2000)  # 10,000 twins
    assert many < 20 * few * 3  # a quadratic term would make it 400 times
