"""Explore: the published design first, ladders per arm, fewer arms, several objectives, narrowed ranges."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from aim_tune.addons import ADDONS
from aim_tune.ledger import History, Training, TrainingResult
from aim_tune.protocol import DONE, WAIT, Machine, Told
from aim_tune.protocol.explore import LEAST_TOLD, ladder
from aim_tune.spec.request import Point, Request
from aim_tune.spec.space import Choice, IntUniform, Uniform
from aim_tune.spec.study import Explore, Study
from aim_tune.stats.narrow import block_ranges

EVALUATIONS = 8


def with_(study: Study, **changes: Any) -> Study:
    explore = replace(study.protocol.explore, **changes)
    recipe = replace(study.recipe, evaluations=EVALUATIONS)
    return replace(study, recipe=recipe, protocol=replace(study.protocol, explore=explore))


# --- trial 0 ----------------------------------------------------------------------------------


def test_trial_0_is_the_published_design_at_the_middle_of_the_shared_ranges(sim):
    point = Machine(sim.study_of()).ask().arms["aim"]
    assert point.shared == pytest.approx({"lr": 0.01, "weight_decay": 0.05})
    assert point.addon == {"memory_shape": [4, 4, 32], "update_width": 16, "write": "sample"}


def test_the_published_design_is_taken_whole_where_the_space_has_it(sim):
    published = dict(ADDONS["memory"].published)
    space = {k: Choice((s.default, published[k])) for k, s in ADDONS["memory"].settings.items()}
    space["update_width"] = IntUniform(4, 64, log=True)
    assert Machine(sim.study_of(addon=space)).ask().arms["aim"].addon == published


def test_every_published_setting_is_one_that_its_add_on_has_and_allows():
    for entry in ADDONS.values():
        assert entry.published
        for name, value in entry.published.items():
            options = entry.settings[name].options
            assert options is None or value in options


def test_an_add_on_without_published_settings_starts_at_the_middle(sim):
    study = sim.study_of()
    other = replace(study, addon=replace(study.addon, name="of_a_plug_in"))
    assert Machine(other).ask().arms["aim"].addon == {
        "memory_shape": [4, 4, 16], "update_width": 8, "write": "sample",
    }  # fmt: skip


# --- arms -------------------------------------------------------------------------------------


def test_explore_may_train_fewer_arms_and_the_blocks_still_train_all(sim):
    study = with_(sim.study_of(), arms=("aim",))
    told = sim.run_study(Machine(study))
    for request, _ in told.values():
        wanted = ("aim",) if request.stage == "explore" else ("baseline", "aim", "frozen")
        assert tuple(request.arms) == wanted


def test_the_design_then_is_the_best_of_those_arms_alone(sim):
    def trainer(request: Request) -> dict[str, float | None]:
        if request.stage == "explore":
            return {"aim": 0.9 if request.position == "explore/2" else 0.5}
        return sim.train(request)

    machine = Machine(with_(sim.study_of(), arms=("aim",)))
    told = sim.run_study(machine, trainer=trainer)
    assert machine.design == told["explore/2"][0].arms["aim"].addon


# --- ladders ----------------------------------------------------------------------------------

SPEED = {"baseline": 1.0, "aim": 0.6, "frozen": 0.8}


def climbed(request: Request, sim: Any) -> dict[str, Told]:
    """Trainings that rise to their score, slower in aim, and that obey the request's ladders."""
    found = {}
    for arm, point in request.arms.items():
        score = sim.score(arm, point, request.streams)
        passes = [score * min(1.0, SPEED[arm] * (k + 1) / EVALUATIONS) for k in range(EVALUATIONS)]
        rungs = dict(request.stop.get(arm, ()))
        ends = [n for n, least in rungs.items() if passes[n - 1] < least]
        count = min(ends, default=EVALUATIONS)
        found[arm] = Told(score=passes[count - 1], pruned=bool(ends), passes=tuple(passes[:count]))
    return found


def climb(sim: Any, study: Study, **kwargs: Any) -> dict[str, tuple[Request, dict[str, Told]]]:
    return sim.run_study(Machine(study), trainer=lambda request: climbed(request, sim), **kwargs)


def test_a_ladder_by_hand():
    """8 passes: rungs after the 2nd (a quarter) and the 4th (half), each the median of those there."""
    curves = [[0.1, 0.2, 0.3, 0.4 + i / 10] for i in range(5)] + [[0.1, 0.9]]
    assert ladder(curves, 8) == ((2, 0.2), (4, pytest.approx(0.6)))
    assert ladder(curves[1:], 8) == ((2, 0.2),)  # four at the second rung are too few
    assert ladder(curves[:4], 8) == ()
    assert LEAST_TOLD == 5


@pytest.mark.parametrize("evaluations", [1, 2, 3, 4, 7, 10, 30])
def test_no_rung_stands_before_a_quarter_of_the_training(evaluations):
    rungs = ladder([[0.5] * evaluations] * 5, evaluations)
    assert rungs
    assert all(number / evaluations >= 0.25 for number, _ in rungs)


def test_each_arm_has_a_ladder_of_its_own_from_its_own_trainings(sim):
    told = climb(sim, with_(sim.study_of(explore=16, lag=1, blocks=0), stopping=True))
    assert all(not told[f"explore/{i}"][0].stop for i in range(LEAST_TOLD))
    request = told["explore/5"][0]
    assert set(request.stop) == {"baseline", "aim", "frozen"}
    for arm, rungs in request.stop.items():
        seconds = sorted(told[f"explore/{i}"][1][arm].passes[1] for i in range(5))
        assert rungs[0] == (2, pytest.approx(seconds[2]))
    # the slow arm is judged by its own kind: a shared ladder would stop nearly all of it
    assert request.stop["aim"][0][1] < 0.7 * request.stop["baseline"][0][1]
    stopped = {arm: sum(scores[arm].pruned for _, scores in told.values()) for arm in request.stop}
    assert min(stopped.values()) >= 2
    assert max(stopped.values()) <= 11


def test_only_explore_trials_have_ladders(sim):
    study = with_(sim.study_of(explore=12, blocks=2, twins=12), stopping=True, finalists=2)
    told = climb(sim, study)
    with_ladders = {position for position, (request, _) in told.items() if request.stop}
    assert with_ladders
    assert all(p.startswith("explore/") and int(p.split("/")[1]) < 12 for p in with_ladders)


def test_slots_and_completion_order_do_not_change_any_ladder(sim):
    study = with_(sim.study_of(explore=20, lag=4, blocks=1), stopping=True)
    texts = {sim.requests_text(climb(sim, study, slots=s, seed=s)) for s in (1, 2, 6)}
    assert len(texts) == 1
    assert '"stop":{' in texts.pop()


def test_a_new_machine_told_the_recorded_results_asks_for_the_same_ladders(sim):
    study = with_(sim.study_of(explore=14, blocks=1), stopping=True)
    whole = climb(sim, study, slots=3, seed=1)
    recorded = climb(sim, study, slots=3, seed=2, stop_after=9)

    def resumed(request: Request) -> dict[str, Told]:
        if request.position in recorded:
            before, scores = recorded[request.position]
            assert before.to_dict() == request.to_dict()
            return scores
        return climbed(request, sim)

    again = sim.run_study(Machine(study), slots=2, trainer=resumed)
    assert sim.requests_text(again) == sim.requests_text(whole)


def test_ladders_survive_json_and_leave_the_content_hash_alone():
    arms = {"aim": Point(shared={"lr": 0.1})}
    plain = Request(position="explore/7", arms=arms, streams={"split": 1})
    request = replace(plain, stop={"aim": ((2, 0.25), (4, 0.5))})
    again = Request.from_dict(json.loads(json.dumps(request.to_dict())))
    assert again == request
    assert request.content_hash == plain.content_hash  # a stopped point is not trained again
    assert "stop" not in plain.to_dict()


def test_a_stopped_training_is_told_to_optuna_as_pruned_at_the_pass_all_arms_reached(sim):
    machine = Machine(with_(sim.study_of(explore=3, lag=1, blocks=0), stopping=True))
    whole = Told(score=0.8, passes=(0.2, 0.4, 0.6, 0.8))
    machine.ask()
    stopped = Told(score=0.3, pruned=True, passes=(0.1, 0.3))
    machine.tell("explore/0", {"baseline": stopped, "aim": whole, "frozen": whole})
    machine.ask()
    machine.tell("explore/1", {"baseline": whole, "aim": whole, "frozen": stopped})
    machine.ask()
    first, second = machine._explore._search.study.trials[:2]
    assert (first.state.name, first.value) == ("COMPLETE", 0.8)  # the baseline does not lead
    assert (second.state.name, second.intermediate_values) == ("PRUNED", {2: pytest.approx(0.35)})


def test_a_stopped_training_is_neither_the_design_nor_a_finalist(sim):
    def trainer(request: Request) -> dict[str, Any]:
        scores = {arm: Told(score=0.5) for arm in request.arms}
        if request.position == "explore/1":
            scores["aim"] = Told(score=0.99, pruned=True, passes=(0.99,))
        return scores

    wide = {"update_width": IntUniform(1, 10**6)}  # no design is drawn twice
    study = with_(sim.study_of(explore=6, blocks=1, addon=wide), stopping=True, finalists=5)
    machine = Machine(study)
    told = sim.run_study(machine, trainer=trainer)
    designs = [told[f"explore/{i}"][0].arms["aim"].addon["update_width"] for i in range(21)]
    assert set(designs[6:]) == set(designs[:6]) - {designs[1]}
    assert machine.design["update_width"] != designs[1]


def test_what_is_told_comes_from_the_ledgers_row():
    result = TrainingResult(
        arm="aim", status="pruned", val_accuracy=0.4, step_ms=6.5, parameters=1200
    )
    training = Training(
        position="explore/3", stage="explore", block=None, index=3, arm="aim",
        point=Point(), streams={}, status="pruned", result=result,
    )  # fmt: skip
    assert Told.of(training) == Told(score=0.4, pruned=True, step_ms=6.5, parameters=1200)
    training.status = "oom"
    assert Told.of(training).score is None
    assert Told(score=0.4, pruned=True).whole is None


# --- objectives -------------------------------------------------------------------------------


def sized(request: Request, sim: Any) -> dict[str, Told]:
    """Wide updates are more accurate and larger."""
    return {
        arm: Told(
            score=sim.score(arm, point, request.streams),
            parameters=1000 + 10 * point.addon.get("update_width", 0),
        )
        for arm, point in request.arms.items()
    }


def test_two_objectives_search_both_ends_and_the_design_is_the_most_accurate(sim):
    study = with_(
        sim.study_of(explore=40, blocks=1, lag=2), objectives=("val_accuracy", "parameters")
    )
    machine = Machine(study)
    told = sim.run_study(machine, trainer=lambda request: sized(request, sim), slots=2)
    late = [told[f"explore/{i}"][0].arms["aim"].addon["update_width"] for i in range(15, 40)]
    single = sim.run_study(
        Machine(with_(study, objectives=("val_accuracy",))),
        trainer=lambda request: sized(request, sim),
    )
    alone = [single[f"explore/{i}"][0].arms["aim"].addon["update_width"] for i in range(15, 40)]
    assert late.count(8) > alone.count(8)  # small ones are worth a look now
    means = {
        i: sum(told[f"explore/{i}"][1][arm].score for arm in ("aim", "frozen")) for i in range(40)
    }
    best = max(means, key=lambda i: means[i])
    assert machine.design == told[f"explore/{best}"][0].arms["aim"].addon


def test_a_trial_without_one_of_the_objectives_is_a_failure_for_optuna(sim):
    study = with_(sim.study_of(explore=2, lag=1, blocks=0), objectives=("val_accuracy", "step_ms"))
    machine = Machine(study)
    request = machine.ask()
    machine.tell(request.position, {arm: Told(score=0.5) for arm in request.arms})
    machine.ask()
    assert machine._explore._search.study.trials[0].state.name == "FAIL"


def test_the_search_is_told_step_times_of_one_type_of_device_alone(sim):
    """That of the first trial. Elsewhere, or on two types at once, a step time says nothing to it."""
    study = with_(sim.study_of(explore=5, lag=1, blocks=0), objectives=("val_accuracy", "step_ms"))
    machine = Machine(study)
    both = [("A", "A"), ("B", "B"), ("A", "B"), ("A", "A"), ("B", "B")]
    for number, types in enumerate(both):
        request = machine.ask()
        on = dict(zip(("aim", "frozen"), types, strict=True))
        told = {
            arm: Told(score=0.5, step_ms=number + 1.0, device=on.get(arm, "C"))
            for arm in request.arms
        }
        machine.tell(request.position, told)
    stage = machine._explore
    values = [stage._value(number) for number in range(5)]
    assert [values[0], values[3]] == [[0.5, 1.0], [0.5, 4.0]]
    assert all(math.isnan(values[number][1]) for number in (1, 2, 4))
    states = [trial.state.name for trial in stage._search.study.trials[:4]]
    assert states == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]


# --- narrowed ranges --------------------------------------------------------------------------


def test_the_blocks_draw_from_the_narrowed_ranges_and_the_history_gives_the_same(sim, history_of):
    study = with_(sim.study_of(explore=24, blocks=6), narrow=True)
    history: History = history_of(study)
    ranges = block_ranges(study, history)
    machine = Machine(study)
    sim.run_study(machine)
    assert {k: machine.chosen.space[f"shared.{k}"] for k in ranges} == ranges
    lr, whole = ranges["lr"], sim.shared["lr"]
    assert isinstance(lr, Uniform)
    assert whole.low < lr.low < 0.02 < lr.high < whole.high  # the optimum of every arm is inside
    drawn = [t.point.shared["lr"] for t in history.rows("twin")]
    assert lr.low <= min(drawn)
    assert max(drawn) <= lr.high


def test_without_narrow_or_with_too_few_trials_the_ranges_stay(sim, history_of):
    for explore, narrow in ((24, False), (12, True)):
        study = with_(sim.study_of(explore=explore, blocks=1), narrow=narrow)
        assert block_ranges(study, history_of(study)) == dict(study.shared)


def test_ranges_are_not_narrowed_before_explore_has_ended(sim, history_of):
    study = with_(sim.study_of(explore=24, blocks=1), narrow=True)
    assert block_ranges(study, history_of(study, stop_after=23)) == dict(study.shared)


# --- the hash ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"arms": ("aim",)}, {"narrow": True}, {"stopping": True},
     {"objectives": ("val_accuracy", "step_ms")}],
)  # fmt: skip
def test_a_study_without_the_new_keys_keeps_its_hash(sim, changes):
    study = sim.study_of(explore=8)
    (key,) = changes
    assert key not in study.identity()["protocol"]["explore"]
    other = with_(study, **changes)
    assert other.study_hash != with_(study).study_hash
    again = Study.from_dict(json.loads(json.dumps(other.to_dict())))
    assert again.protocol == other.protocol
    older = study.to_dict()
    older["protocol"]["explore"].pop(key)
    assert Study.from_dict(older).protocol == study.protocol


def test_explore_by_default_is_what_it_was():
    assert Explore() == Explore(
        arms=(), narrow=False, stopping=False, objectives=("val_accuracy",), finalists=0
    )


def test_waiting_ends_when_all_is_told(sim):
    machine = Machine(with_(sim.study_of(explore=2, blocks=0, lag=1), stopping=True))
    request = machine.ask()
    assert machine.ask() is WAIT
    machine.tell(request.position, climbed(request, sim))
    request = machine.ask()
    machine.tell(request.position, climbed(request, sim))
    assert machine.ask() is DONE
