"""What runs next and what becomes of it: no process is started here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aim_tune.engine.conductor import ATTEMPTS, Conductor
from aim_tune.errors import ResumeError
from aim_tune.ledger import History, pack_ints, unpack_bits
from aim_tune.protocol import DONE, WAIT, Machine
from aim_tune.spec.request import Job, Point, Request


def work(conductor: Conductor, study: Any, lab: Any, jobs: int | None = None) -> list[Job]:
    """Run jobs one at a time, with the simulated body."""
    done = []
    while (jobs is None or len(done) < jobs) and isinstance(job := conductor.next_job(), Job):
        lab.simulated(job, study, store_root=None, report=conductor.event)
        conductor.job_done(job)
        done.append(job)
    return done


def begin(conductor: Conductor, job: Job, arm: str) -> None:
    """A worker says that it starts with an arm, and nothing more."""
    head = {"position": job.request.position, "arm": arm, "attempt": job.attempts[arm]}
    conductor.event({"event": "training_started", **head, "node": "", "device": "", "pid": 0})


def replay(records: list[dict[str, Any]]) -> History:
    history = History()
    for record in records:
        history.apply(record)
    return history


class Script:
    """A machine that asks given requests and notes what it is told."""

    def __init__(self, *requests: Request) -> None:
        self.requests, self.told = list(requests), {}

    def ask(self) -> Any:
        if self.requests:
            return self.requests.pop(0)
        return DONE

    def tell(self, position: str, scores: Any) -> None:
        self.told[position] = dict(scores)


def ask_for(position: str, *, lr: float = 0.1, test: bool = False, seed: int = 1) -> Request:
    arms = {arm: Point(shared={"lr": lr}) for arm in ("baseline", "aim")}
    return Request(position=position, arms=arms, streams={"split": seed}, test=test)


def test_a_study_ends_with_every_planned_training_done(lab: Any) -> None:
    study = lab.study()
    conductor, ledger = lab.conduct(study)
    jobs = work(conductor, study, lab)
    assert conductor.next_job() is DONE
    assert conductor.finished
    assert len(ledger.history.done) == study.requests_planned == 10
    assert len(ledger.history.trainings) == 30
    reused = {t.position for t in ledger.history.trainings.values() if t.reused_from}
    assert len(jobs) == 10 - len(reused)


@pytest.mark.parametrize("cut", [1, 7, 20, 47, 80])
def test_resuming_at_any_record_gives_the_uninterrupted_result_and_trains_nothing_twice(
    lab: Any, cut: int
) -> None:
    study = lab.study()
    conductor, whole = lab.conduct(study)
    work(conductor, study, lab)

    again = lab.Ledger(replay(whole.records[:cut]))
    before = {k for k, t in again.history.trainings.items() if t.done}
    conductor, again = lab.conduct(study, again)
    work(conductor, study, lab)
    assert lab.outcome(again.history) == lab.outcome(whole.history)
    started = {(r["position"], r["arm"]) for r in again.records if r["event"] == "training_started"}
    assert not started & before


def test_one_arm_per_job_where_the_study_packs_by_arm(lab: Any) -> None:
    study = lab.study(pack="arm")
    conductor, ledger = lab.conduct(study)
    jobs = work(conductor, study, lab)
    assert {len(job.arms) for job in jobs} == {1}
    other, twin = lab.conduct(lab.study(pack="twin"))
    work(other, lab.study(pack="twin"), lab)
    assert lab.outcome(ledger.history) == lab.outcome(twin.history)


def test_a_lost_job_runs_its_unfinished_arms_again_and_fails_them_after_three_attempts(
    lab: Any,
) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, ledger = lab.conduct(study)
    job = conductor.next_job()
    assert set(job.attempts.values()) == {1}
    lab.simulated(job.only(job.arms[:1]), study, store_root=None, report=conductor.event)
    lost, spared = job.arms[1:]
    attempts = []
    for _ in range(ATTEMPTS):
        attempts.append(job.attempts[lost])
        begin(conductor, job, lost)
        conductor.job_lost(job, "signal 9")
        job = conductor.next_job()
    assert attempts == [1, 2, 3]
    assert job.arms == (spared,)  # it still has all its own attempts
    assert job.attempts == {spared: 1}
    failed = ledger.history.trainings[job.request.position, lost].result
    assert failed.status == "failed"
    assert failed.detail == "lost 3 times; at last: signal 9"
    assert failed.allotted_steps == 10  # the budget counts as granted


def test_a_worker_that_dies_before_it_speaks_costs_an_attempt(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, ledger = lab.conduct(study)
    lost = 0
    while isinstance(job := conductor.next_job(), Job) and job.request.stage == "twin":
        conductor.job_lost(job, "gone")
        lost += 1
    assert lost == ATTEMPTS * 3  # three attempts for each of three arms, then it is over
    assert {t.status for t in ledger.history.rows("twin")} == {"failed"}


def test_an_interrupt_does_not_count_as_an_attempt(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    ledger = lab.Ledger()
    for _ in range(ATTEMPTS + 2):
        conductor, _ = lab.conduct(study, ledger)
        job = conductor.next_job()
        assert isinstance(job, Job)
        begin(conductor, job, job.arms[0])
        ledger.append({"event": "interrupted", "reason": "SIGINT"})
    work(lab.conduct(study, ledger)[0], study, lab)
    assert {t.status for t in ledger.history.trainings.values()} == {"ok"}


def test_a_training_whose_driver_was_killed_three_times_fails(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    ledger = lab.Ledger()
    for _ in range(ATTEMPTS):
        conductor, _ = lab.conduct(study, ledger)
        job = conductor.next_job()
        begin(conductor, job, job.arms[0])
    conductor, _ = lab.conduct(study, ledger)
    again = conductor.next_job()
    assert job.arms[0] not in again.arms
    assert ledger.history.trainings[job.request.position, job.arms[0]].status == "failed"


def test_words_of_an_orphan_are_left_out(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, ledger = lab.conduct(study)
    job = conductor.next_job()
    lab.simulated(job, study, store_root=None, report=conductor.event)
    count = len(ledger.records)
    lab.simulated(job, study, store_root=None, report=conductor.event)  # the same once more
    assert len(ledger.records) == count


def test_the_look_is_on_record_before_the_score_and_is_not_repeated(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, whole = lab.conduct(study)
    work(conductor, study, lab)
    events = [r["event"] for r in whole.records]
    look = events.index("test_look")
    assert events[look + 1] == "request_done"
    assert whole.records[look]["examples"] == 20
    assert set(whole.records[look]["arms"]) == {"baseline", "aim", "frozen"}

    again = lab.Ledger(replay(whole.records[: look + 1]))  # killed between look and score
    conductor, again = lab.conduct(study, again)
    work(conductor, study, lab)
    assert [r["event"] for r in again.records] == ["request_done"]
    assert len(again.history.looks) == 1


def test_confirm_predictions_are_scored_against_the_sealed_labels(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, ledger = lab.conduct(study)
    work(conductor, study, lab, jobs=1)
    job = conductor.next_job()
    assert job.request.test

    def right_for(arm: str) -> int:
        return {"baseline": 5, "aim": 20, "frozen": 0}[arm]

    for arm in job.arms:
        head = {"position": job.request.position, "arm": arm, "attempt": 1}
        classes = np.where(np.arange(20) < right_for(arm), lab.labels, (lab.labels + 1) % 10)
        result = {
            "arm": arm,
            "status": "ok",
            "val_accuracy": 0.5,
            "predictions": pack_ints(classes),
        }
        conductor.event({"event": "training_done", **head, "result": result})
    conductor.job_done(job)
    trainings = {t.arm: t for t in ledger.history.of(job.request.position)}
    assert {a: t.test_accuracy for a, t in trainings.items()} == {
        "baseline": 0.25, "aim": 1.0, "frozen": 0.0,
    }  # fmt: skip
    assert unpack_bits(trainings["baseline"].correct).sum() == 5


def test_a_duplicate_of_a_finished_explore_request_is_told_at_once(lab: Any) -> None:
    study = lab.study()
    script = Script(ask_for("explore/0"), ask_for("explore/1"))
    conductor = Conductor(study, script, lab.Ledger(), None)
    assert len(work(conductor, study, lab)) == 1
    assert script.told["explore/1"] == script.told["explore/0"]
    assert conductor.history.trainings["explore/1", "aim"].reused_from == "explore/0"


def test_a_duplicate_of_a_running_request_waits_for_it(lab: Any) -> None:
    study = lab.study()
    script = Script(ask_for("explore/0"), ask_for("explore/1"), ask_for("explore/2", lr=0.2))
    conductor = Conductor(study, script, lab.Ledger(), None)
    first, other = conductor.next_job(), conductor.next_job()
    assert [first.request.position, other.request.position] == ["explore/0", "explore/2"]
    lab.simulated(first, study, store_root=None, report=conductor.event)
    assert script.told == {}
    conductor.job_done(first)
    assert set(script.told) == {"explore/0", "explore/1"}


def test_equal_requests_of_blocks_are_both_trained(lab: Any) -> None:
    study = lab.study()
    script = Script(ask_for("block/0/twin/0"), ask_for("block/1/twin/0"))
    conductor = Conductor(study, script, lab.Ledger(), None)
    assert len(work(conductor, study, lab)) == 2


def test_a_failed_arm_is_told_as_no_score_and_its_siblings_keep_theirs(lab: Any) -> None:
    study = lab.study()
    script = Script(ask_for("block/0/twin/0"))
    conductor = Conductor(study, script, lab.Ledger(), None)
    job = conductor.next_job()
    for arm, result in {
        "baseline": {"arm": "baseline", "status": "ok", "val_accuracy": 0.75},
        "aim": {"arm": "aim", "status": "oom", "val_accuracy": 0.5},
    }.items():
        head = {"position": job.request.position, "arm": arm, "attempt": 1}
        conductor.event({"event": "training_done", **head, "result": result})
    conductor.job_done(job)
    assert conductor.next_job() is DONE  # no blind retry: it would not fit again
    told = script.told["block/0/twin/0"]
    assert {arm: one.score for arm, one in told.items()} == {"baseline": 0.75, "aim": None}


def test_other_code_that_asks_differently_is_refused_on_resume(lab: Any) -> None:
    study, ledger = lab.study(), lab.Ledger()
    Conductor(study, Script(ask_for("explore/0")), ledger, None).next_job()
    with pytest.raises(ResumeError, match="explore/0 was asked differently when this study began"):
        Conductor(study, Script(ask_for("explore/0", lr=0.3)), ledger, None).next_job()


def test_it_waits_while_the_protocol_waits_and_something_runs(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor = Conductor(study, Machine(study), lab.Ledger(), lab.labels)
    job = conductor.next_job()
    assert conductor.next_job() is WAIT
    assert not conductor.finished
    lab.simulated(job, study, store_root=None, report=conductor.event)
    conductor.job_done(job)
    assert isinstance(conductor.next_job(), Job)


def test_listeners_get_every_record_after_it_is_on_the_ledger(lab: Any) -> None:
    study, ledger, heard = lab.study(trials=0, blocks=1, twins=1), lab.Ledger(), []

    def listen(record: dict[str, Any]) -> None:
        assert ledger.records[-1] is record
        heard.append(record)

    conductor, _ = lab.conduct(study, ledger, listeners=[listen])
    work(conductor, study, lab)
    assert heard == ledger.records
