"""Studies that end early or go on longer: planned looks, arms that wait, budgets, blocks added later.

The real machine, conductor and verdict; only the training is invented."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from aim_tune.data.info import DataInfo
from aim_tune.engine.conductor import Conductor
from aim_tune.engine.resume import check_same, declaration
from aim_tune.errors import ResumeError
from aim_tune.ledger import History, TrainingResult, pack_ints
from aim_tune.protocol import Machine, Signal
from aim_tune.protocol.gates import device_hours
from aim_tune.spec.request import Job
from aim_tune.spec.space import Fixed
from aim_tune.spec.study import Study
from aim_tune.spec.values import derive_seed
from aim_tune.stats import decide
from aim_tune.stats.amounts import study_status

LABELS = np.zeros(300, dtype=int)
Body = Callable[[Job, Study, Any], None]


def world(effects: dict[str, float], *, seconds: float = 1.0) -> Body:
    """Arms that get 70 % of the examples right, and `effects` points more; sd about 1 point."""

    def body(job: Job, study: Study, report: Any) -> None:
        for arm in job.arms:
            head = {"position": job.request.position, "arm": arm, "attempt": job.attempts[arm]}
            report({"event": "training_started", **head, "node": "n", "device": "d", "pid": 1})
            rng = np.random.default_rng(derive_seed(arm, dict(job.request.streams)))
            chance = 0.7 + effects.get(arm, 0.0) / 100 + rng.normal(0, 0.01)
            ease = np.random.default_rng(0).permutation(len(LABELS)) / len(LABELS)
            wrong = (ease > chance).astype(int)
            shared = job.request.arms[arm].shared
            steps = study.recipe_of(arm, shared, job.request.steps.get(arm)).steps
            result = TrainingResult(
                arm=arm, status="ok", steps=steps or 0, allotted_steps=steps or 0, seconds=seconds,
                val_accuracy=float(chance), predictions=pack_ints(wrong) if job.request.test else None,
                step_ms=12.0 if arm == "aim" else 10.0, parameters=1000,
            )  # fmt: skip
            report({"event": "training_done", **head, "result": result.to_dict()})

    return body


def run(
    study: Study, body: Body, lab: Any, history: History | None = None, jobs: int | None = None
) -> Any:
    """Run a study (or its next `jobs` jobs) one job at a time; the ledger."""
    ledger = lab.Ledger(history)
    if ledger.history.declared is None:
        ledger.append({"event": "declared", "study": study.to_dict(), "study_hash": "h"})
    conductor = Conductor(study, Machine(study, allotted=lambda r: r.steps or 0), ledger, LABELS)
    while (jobs is None or jobs > 0) and isinstance(job := conductor.next_job(), Job):
        body(job, study, conductor.event)
        conductor.job_done(job)
        jobs = None if jobs is None else jobs - 1
    return ledger


def replayed(records: list[dict[str, Any]]) -> History:
    history = History()
    for record in records:
        history.apply(record)
    return history


def asks(lab: Any, **protocol: Any) -> Study:
    """Baseline, aim and frozen in blocks of 2 twins and 1 confirm pair."""
    study = lab.study(trials=0, blocks=protocol.pop("blocks", 8), twins=2)
    return replace(study, protocol=replace(study.protocol, **protocol))


def trained(history: History) -> Counter[str]:
    return Counter(t.arm for t in history.rows() if t.done)


# -- planned looks -------------------------------------------------------------------------------


def test_a_look_that_decides_ends_the_study_there(lab: Any) -> None:
    study = asks(lab, blocks=20, looks=(8, 12, 20))
    ledger = run(study, world({"aim": 5.0}), lab)
    gates = [r for r in ledger.records if r["event"] == "gate"]
    assert [(g["gate"], g["open"], g["verdict"]) for g in gates] == [("look/8", False, "better")]
    assert gates[0]["reason"] == "the verdict is better"
    assert {t.block for t in ledger.history.rows()} == set(range(8))
    verdict = decide(study, ledger.history)
    assert (verdict.verdict, verdict.look, verdict.blocks, verdict.interim) == (
        "better", 1, 8, False,
    )  # fmt: skip
    assert study_status(study, ledger.history) == "complete"


def test_looks_that_do_not_decide_go_on_to_the_end(lab: Any) -> None:
    study = asks(lab, blocks=12, looks=(8, 10, 12), rope_points=0.01)
    ledger = run(study, world({}), lab)
    gates = [(r["gate"], r["open"]) for r in ledger.records if r["event"] == "gate"]
    assert gates == [("look/8", True), ("look/10", True), ("look/12", False)]
    verdict = decide(study, ledger.history)
    assert (verdict.verdict, verdict.look, verdict.blocks) == ("no_evidence", 3, 12)
    assert study_status(study, ledger.history) == "complete"


def test_no_block_beyond_a_look_begins_before_it_is_judged(lab: Any) -> None:
    study = asks(lab, blocks=4, looks=(2, 4))
    machine = Machine(study)
    open_ones = []
    while not isinstance(answer := machine.ask(), Signal):
        open_ones.append(answer)
    assert {r.block for r in open_ones} == {0, 1}  # as many slots as one likes


@pytest.mark.parametrize("cut", [40, 200, 260, 275, 290])
def test_resuming_around_a_look_trains_nothing_twice_and_ends_alike(lab: Any, cut: int) -> None:
    study = asks(lab, blocks=12, looks=(4, 8, 12), rope_points=0.01)
    body = world({"aim": 1.6})
    whole = run(study, body, lab)
    again = run(study, body, lab, replayed(whole.records[:cut]))
    assert lab.outcome(again.history) == lab.outcome(whole.history)
    assert again.history.gates.keys() == whole.history.gates.keys()
    assert decide(study, again.history).to_dict() == decide(study, whole.history).to_dict()
    before = {k for k, t in replayed(whole.records[:cut]).trainings.items() if t.done}
    started = {(r["position"], r["arm"]) for r in again.records if r["event"] == "training_started"}
    assert not started & before


# -- arms that wait ------------------------------------------------------------------------------


def test_without_a_better_no_placebo_is_trained(lab: Any) -> None:
    study = asks(lab, attribution="after_better")
    ledger = run(study, world({}), lab)
    assert set(trained(ledger.history)) == {"baseline", "aim"}
    (gate,) = (r for r in ledger.records if r["event"] == "gate")
    assert (gate["gate"], gate["open"]) == ("attribution/8", False)
    verdict = decide(study, ledger.history)
    assert verdict.verdict != "better"
    assert (verdict.untrained, verdict.reason) == (("frozen",), "")
    assert study_status(study, ledger.history) == "complete"


def test_after_a_better_the_placebo_gets_the_very_same_streams_points_and_budget(lab: Any) -> None:
    study = asks(lab, attribution="after_better")
    body = world({"aim": 5.0, "frozen": 0.0})
    history = run(study, body, lab).history
    assert trained(history) == {"baseline": 24, "aim": 24, "frozen": 24}
    for late in history.rows(arm="frozen"):
        first = history.trainings[late.position.replace("after/", "block/"), "aim"]
        assert late.streams == first.streams
        if late.stage == "twin":
            assert late.point == first.point
    verdict = decide(study, history)
    assert (verdict.verdict, verdict.attribution) == ("better", {"frozen": "attributed"})
    assert {b.steps for b in verdict.budget.values()} == {240}
    assert study_status(study, history) == "complete"

    at_once = decide(*(lambda s: (s, run(s, body, lab).history))(asks(lab)))
    assert verdict.comparisons == at_once.comparisons  # waiting changes no figure


def test_waiting_arms_choose_their_own_best_point(lab: Any) -> None:
    history = run(asks(lab, attribution="after_better"), world({"aim": 5.0}), lab).history
    for confirm in history.rows("confirm", "frozen"):
        twins = [t for t in history.rows("twin", "frozen") if t.block == confirm.block]
        assert confirm.point == max(twins, key=lambda t: t.score or 0.0).point


@pytest.mark.parametrize("cut", [150, 176, 180, 230])
def test_resuming_around_the_attribution_gate_ends_alike(lab: Any, cut: int) -> None:
    study, body = asks(lab, attribution="after_better"), world({"aim": 5.0})
    whole = run(study, body, lab)
    partial = replayed(whole.records[:cut])
    assert study_status(study, partial) == "unfinished"
    again = run(study, body, lab, partial)
    assert lab.outcome(again.history) == lab.outcome(whole.history)
    assert decide(study, again.history).to_dict() == decide(study, whole.history).to_dict()


# -- shortened twins -----------------------------------------------------------------------------


def test_search_fraction_shortens_the_twins_of_every_arm_and_no_confirm_pair(lab: Any) -> None:
    study = asks(lab, blocks=2, search_fraction=0.2)
    history = run(study, world({}), lab).history
    assert {t.result.allotted_steps for t in history.rows("twin")} == {2}
    assert {t.result.allotted_steps for t in history.rows("confirm")} == {10}
    verdict = decide(study, history)
    assert (verdict.search_fraction, verdict.reason) == (0.2, "")
    assert "steps" not in run(asks(lab, blocks=1), world({}), lab).records[1]["request"]


# -- recipes of their own ------------------------------------------------------------------------


def test_declared_step_differences_are_no_reason_to_withhold(lab: Any) -> None:
    study = replace(asks(lab), overrides={"aim": {"steps": 20}})
    history = run(study, world({"aim": 5.0}), lab).history
    undeclared = decide(study, history)
    assert undeclared.verdict == "withheld"
    assert "steps allotted: baseline 240, aim 480, frozen 240" in undeclared.reason
    declared = replace(study, declared_confounds={"steps": "baseline 10, aim 20, frozen 10"})
    verdict = decide(declared, history)
    assert verdict.verdict == "better"
    assert verdict.declared_confounds == {"steps": "baseline 10, aim 20, frozen 10"}


# -- matched arms --------------------------------------------------------------------------------


def matched(lab: Any, *arms: str) -> Study:
    study = asks(lab, blocks=2)
    addon = replace(study.addon, space={"update_width": Fixed(8)})
    return replace(study, addon=addon, arms=("baseline", "aim", *arms))


def test_measured_arms_get_the_steps_and_the_width_that_match_0_found(lab: Any) -> None:
    study = matched(lab, "time_matched", "step_matched")
    ledger = run(study, world({}), lab)
    history = ledger.history
    first = next(r for r in ledger.records if r["event"] == "asked")
    assert first["position"] == "match/0"
    assert [arm for arm, _ in first["request"]["arms"]] == ["baseline", "aim", "step_matched"]
    assert {t.result.allotted_steps for t in history.rows("confirm", "time_matched")} == {12}
    assert {t.result.allotted_steps for t in history.rows("confirm", "step_matched")} == {10}
    assert {t.point.addon["widen_to"] for t in history.rows("twin", "step_matched")} == {1000}
    assert "widen_to" not in history.trainings["block/0/twin/0", "aim"].point.addon
    verdict = decide(study, history)
    assert verdict.reason == ""  # steps differ by design
    assert study_status(study, history) == "complete"


@pytest.mark.parametrize("pack", ["twin", "arm"])
def test_all_arms_are_measured_by_one_job_in_one_process(pack: str, lab: Any) -> None:
    study = matched(lab, "time_matched", "step_matched")
    study = replace(study, resources=replace(study.resources, pack=pack))
    conductor, _ = lab.conduct(study)
    job = conductor.next_job()
    assert (job.request.position, job.arms) == ("match/0", tuple(job.request.arms))
    assert set(job.arms) == {"baseline", "aim", "step_matched"}


def test_a_resumed_study_does_not_measure_again(lab: Any) -> None:
    study = matched(lab, "time_matched")
    whole = run(study, world({}), lab)
    again = run(study, world({}), lab, replayed(whole.records[:10]))
    assert "match/0" not in {r.get("position") for r in again.records}
    assert lab.outcome(again.history) == lab.outcome(whole.history)


def test_measured_arms_that_wait_are_measured_when_they_are_called(lab: Any) -> None:
    study = matched(lab, "frozen", "time_matched")
    protocol = replace(study.protocol, attribution="after_better", blocks=8)
    study = replace(study, protocol=protocol)
    ledger = run(study, world({"aim": 5.0}), lab)
    order = [r["position"] for r in ledger.records if r["event"] == "asked"]
    assert order.index("match/0") == 24
    assert order[25].startswith("after/0/")
    assert study_status(study, ledger.history) == "complete"
    assert set(run(study, world({}), lab).history.trainings) == {
        (p, a) for p in order[:24] for a in ("baseline", "aim")
    }


# -- budgets -------------------------------------------------------------------------------------


def test_a_budget_ends_the_study_at_a_whole_block_and_the_verdict_says_so(lab: Any) -> None:
    block_s = 3 * 3 * 600.0  # requests, arms, seconds
    study = asks(lab, blocks=8, budget_gpu_hours=4.5 * block_s / 3600)
    history = run(study, world({}, seconds=600.0), lab).history
    assert history.stopped is not None
    assert history.stopped["gate"] == "block/4"
    assert history.stopped["reason"] == "6 of 6.75 device hours used, 7.5 with one more block"
    assert {t.block for t in history.rows()} == set(range(4))
    assert device_hours(study.resources, history.rows()) == pytest.approx(6.0)
    assert study_status(study, history) == "complete"
    verdict = decide(study, history)
    assert (verdict.out_of_budget, verdict.interim, verdict.blocks) == (True, False, 4)


def test_a_budget_counts_blocks_that_are_still_running(lab: Any) -> None:
    study = asks(lab, blocks=8, budget_gpu_hours=3.5 * 9 * 600 / 3600)
    ledger = lab.Ledger()
    ledger.append({"event": "declared", "study": study.to_dict(), "study_hash": "h"})
    conductor, body = Conductor(study, Machine(study), ledger, LABELS), world({}, seconds=600.0)
    running = [conductor.next_job()]
    while running or isinstance(conductor.next_job(), Job):
        body(running[0], study, conductor.event)
        conductor.job_done(running.pop(0))
        while len(running) < 4 and isinstance(job := conductor.next_job(), Job):
            running.append(job)
    assert {t.block for t in ledger.history.rows()} == {0, 1, 2}


def test_device_hours_are_of_gpus_where_there_are_any(lab: Any) -> None:
    study = asks(lab, blocks=1)
    rows = run(study, world({}, seconds=1200.0), lab).history.rows()
    assert device_hours(study.resources, rows) == pytest.approx(3.0)
    assert device_hours(replace(study.resources, cpu=4), rows) == pytest.approx(12.0)
    assert device_hours(replace(study.resources, cpu=4, gpu=0.5), rows) == pytest.approx(1.5)


# -- blocks added later --------------------------------------------------------------------------


def test_blocks_may_be_added_and_the_verdict_is_then_anytime_valid(lab: Any, tmp_path: Any) -> None:
    small, body = asks(lab, blocks=4), world({"aim": 2.0})
    before = run(small, body, lab)
    grown = asks(lab, blocks=12)
    history = replayed(before.records)
    history.apply({"event": "extended", "blocks": 12})
    after = run(grown, body, lab, history)
    plain = run(grown, body, lab)
    assert lab.outcome(after.history) == lab.outcome(plain.history)  # the same blocks
    late, planned = decide(grown, after.history), decide(grown, plain.history)
    assert (late.extended, late.interim, late.blocks) == (True, False, 12)
    assert late.effect_points == planned.effect_points
    wide, narrow = late.primary.ci95_points, planned.primary.ci95_points
    assert wide[0] < narrow[0] < narrow[1] < wide[1]  # the price of no plan


def test_a_study_with_planned_looks_cannot_grow(lab: Any, tmp_path: Any) -> None:
    study = asks(lab, blocks=8, looks=(4, 8))
    history = History()
    info = DataInfo(
        name="digits", classes=10, class_names=tuple("0123456789"), image_shape=(1, 8, 8),
        pool=1000, test=300, train=200, val=300, digest="d1ce",
    )  # fmt: skip
    history.apply({**declaration(study, info), "time": 0.0})
    grown = replace(study, protocol=replace(study.protocol, blocks=12, looks=(4, 8, 12)))
    with pytest.raises(ResumeError, match=r"protocol\.looks: \[4, 8\] then, \[4, 8, 12\] now"):
        check_same(history, grown, info, folder=tmp_path)


# -- all together --------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.0, 5.0])
def test_all_of_it_together_resumed_anywhere_ends_alike(lab: Any, effect: float) -> None:
    study = matched(lab, "frozen", "time_matched")
    protocol = replace(
        study.protocol, blocks=6, looks=(4, 6), attribution="after_better", search_fraction=0.5,
        export_seeds=2, budget_gpu_hours=100.0,
    )  # fmt: skip
    study, body = replace(study, protocol=protocol), world({"aim": effect})
    whole = run(study, body, lab)
    assert study_status(study, whole.history) == "complete"
    assert ("frozen" in trained(whole.history)) == (effect > 0)
    rng = np.random.default_rng(1)
    for cut in rng.integers(2, len(whole.records), 6):
        partial = replayed(whole.records[:cut])
        again = run(study, body, lab, partial)
        assert lab.outcome(again.history) == lab.outcome(whole.history)
        assert again.history.gates.keys() == whole.history.gates.keys()
        assert decide(study, again.history).to_dict() == decide(study, whole.history).to_dict()
    unfinished = replayed(whole.records[: len(whole.records) - 2])
    assert study_status(study, unfinished) == "unfinished"


def test_growing_a_study_asks_again_whether_the_arms_that_wait_are_called(lab: Any) -> None:
    body = world({"aim": 5.0})
    small, grown = (asks(lab, blocks=n, attribution="after_better") for n in (3, 8))
    history = run(small, world({"aim": 0.0}), lab).history
    assert history.gates["attribution/3"]["open"] is False
    history.apply({"event": "extended", "blocks": 8})
    after = run(grown, body, lab, history).history
    assert set(after.gates) == {"attribution/3", "attribution/8"}
    assert study_status(grown, after) == "complete"
