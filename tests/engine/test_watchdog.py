"""Trainings that hang are ended from outside, keep what they reached and do not come back."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from ray import cloudpickle

from aim_tune.engine import in_process
from aim_tune.engine.watchdog import Watchdog
from aim_tune.errors import ResumeError
from aim_tune.spec.request import Job

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def record(event: str, arm: str = "aim", **more: Any) -> dict[str, Any]:
    return {"event": event, "arm": arm, "position": "block/0/twin/0", "attempt": 1, **more}


def test_a_training_hangs_once_it_is_past_its_limit_and_the_grace() -> None:
    now = [0.0]
    dog = Watchdog(100.0, 60.0, clock=lambda: now[0])
    now[0] = 1e6
    assert dog.hanging is None  # a worker that has not begun may wait for a machine
    dog.heard(record("training_started"))
    now[0] += 159
    assert dog.hanging is None
    now[0] += 2
    assert dog.hanging == "aim"
    dog.heard(record("training_done"))
    assert dog.hanging is None


def test_without_a_time_limit_nothing_hangs() -> None:
    now = [0.0]
    dog = Watchdog(None, clock=lambda: now[0])
    dog.heard(record("training_started"))
    now[0] = 1e9
    assert dog.hanging is None


def hanging(simulated: Callable[..., None]) -> Callable[..., None]:
    """The arm aim of twin 0 stands still in its data, after one validation pass."""

    def body(job: Job, study: Any, *, report: Any, **kwargs: Any) -> None:
        for arm in job.arms:
            if arm == "aim" and job.request.position == "block/0/twin/0":
                head = {"position": "block/0/twin/0", "arm": arm, "attempt": job.attempts[arm]}
                report({"event": "training_started", **head, "node": "n", "device": "d", "pid": 1})
                time.sleep(1.1)  # passes travel together, once a second
                measure = {"step": 5, "epoch": 0.5, "train_loss": 1.0, "val_loss": 1.0, "lr": 0.1}
                report({"event": "epoch", **head, **measure, "val_accuracy": 0.5, "seconds": 1.0})
                time.sleep(600)
            simulated(job.only([arm]), study, report=report, **kwargs)

    return body


@pytest.mark.parametrize("engine", ["in_process", "ray"])
def test_a_hanging_training_ends_as_timeout_and_its_siblings_go_on(
    engine: str, lab: Any, request: pytest.FixtureRequest
) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    study = lab.replace(study, resources=lab.replace(study.resources, time_limit_s=0.2))
    module: Any = in_process
    if engine == "ray":
        request.getfixturevalue("ray_session")
        from aim_tune.engine import ray_tune

        module = ray_tune
    conductor, ledger = lab.conduct(study)
    with module.opened(study, slots=1) as opened:
        opened.grace_s = 3.0
        opened.run(conductor, study, None, body=hanging(lab.simulated))
    assert conductor.finished
    trainings = ledger.history.trainings
    assert {t.status for (p, a), t in trainings.items() if (p, a) != ("block/0/twin/0", "aim")} == {
        "ok"
    }
    hung = trainings["block/0/twin/0", "aim"]
    assert (hung.status, hung.attempts, hung.score, hung.result.steps) == ("timeout", 1, 0.5, 5)
    assert "long past resources.time_limit_s" in hung.result.detail
    assert [r for r in ledger.records if r["event"] == "job_lost"] == []


def test_a_worker_with_other_code_stops_the_search_before_its_results_mix(lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=1)
    conductor, ledger = lab.conduct(study)
    ledger.history.declared = {"code_hash": "then"}
    job = conductor.next_job()
    head = record("training_started", node="far", device="d", pid=1)
    conductor.event({**head, "code": "then"})
    before = len(ledger.records)
    with pytest.raises(ResumeError, match=r"on far is another .*\(now there, then here\)"):
        conductor.event({**head, "arm": job.arms[1], "code": "now"})
    assert len(ledger.records) == before
