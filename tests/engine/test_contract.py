"""One suite for all engines: same study, same seed, same points and results, whatever carries the jobs."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aim_tune.engine import in_process
from aim_tune.engine.stop import Interrupted, Stop
from aim_tune.errors import ResourceError

ENGINES = ["in_process", "ray 1 slot", "ray 2 slots"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    """A module with `opened`, and the slots to open it with."""
    if request.param == "in_process":
        return in_process, 1
    request.getfixturevalue("ray_session")
    from aim_tune.engine import ray_tune

    return ray_tune, int(request.param.split()[1])


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What a plain loop gives, once found: engines must equal it."""
    return {}


def run(engine: Any, study: Any, lab: Any, body: Any, **kwargs: Any) -> Any:
    module, slots = engine
    conductor, ledger = lab.conduct(study)
    with module.opened(study, slots=slots) as opened:
        opened.run(conductor, study, None, body=body, **kwargs)
    assert conductor.finished
    return ledger


@pytest.mark.parametrize("pack", ["twin", "arm"])
def test_points_and_results_do_not_depend_on_the_engine(
    engine: Any, pack: str, lab: Any, expected: dict[str, Any]
) -> None:
    study = lab.study(pack=pack, trials=6, blocks=2, twins=3)
    outcome = lab.outcome(run(engine, study, lab, lab.simulated).history)
    assert len(outcome) == 3 * study.requests_planned
    assert outcome == expected.setdefault("outcome", outcome)


def test_a_job_that_raises_is_tried_again_and_its_siblings_are_not(
    engine: Any, lab: Any, tmp_path: Path
) -> None:
    study = lab.study(trials=0, blocks=1, twins=2)
    body = lab.failing_once(tmp_path / "flag", "raise")
    ledger = run(engine, study, lab, body)
    assert {t.status for t in ledger.history.trainings.values()} == {"ok"}
    (lost,) = (r for r in ledger.records if r["event"] == "job_lost")
    assert "RuntimeError: planted" in lost["reason"]
    assert sorted(t.attempts for t in ledger.history.trainings.values()) == [1] * 8 + [2]


def test_a_job_that_always_dies_ends_as_failed_and_the_study_goes_on(engine: Any, lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=2)
    ledger = run(engine, study, lab, lab.broken_at("block/0/twin/0"))
    by_position = {t.position: t.status for t in ledger.history.trainings.values()}
    assert by_position == {
        "block/0/twin/0": "failed", "block/0/twin/1": "ok", "block/0/confirm/0": "ok",
    }  # fmt: skip


def test_trouble_in_the_driver_is_raised_as_it_is(engine: Any, lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=2)
    module, slots = engine
    conductor, ledger = lab.conduct(study)

    def full(event: Any) -> Any:
        raise ResourceError("no room left")

    ledger.append = full
    with module.opened(study, slots=slots) as opened, pytest.raises(ResourceError, match="no room"):
        opened.run(conductor, study, None, body=lab.simulated)


def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(engine: Any, lab: Any) -> None:
    module, slots = engine
    study = lab.study()
    study = lab.replace(study, resources=lab.replace(study.resources, gpu=64))
    refused = pytest.raises(ResourceError, match=r"resources\.gpu")
    with refused, module.opened(study, slots=slots):
        pass


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_this_process_at_once(signum: int, lab: Any) -> None:
    study = lab.study(trials=0, blocks=1, twins=2)
    threading.Timer(0.3, os.kill, (os.getpid(), signum)).start()
    began = time.monotonic()
    with Stop() as stop, pytest.raises(Interrupted) as caught:
        run((in_process, 1), study, lab, lab.sleeping, stop=stop)
    assert caught.value.exit_code == 128 + signum
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("slots", [1, 2])
def test_a_worker_that_is_killed_costs_one_attempt_and_no_result(
    ray_session: None, slots: int, lab: Any, tmp_path: Path
) -> None:
    from aim_tune.engine import ray_tune

    study = lab.study(trials=0, blocks=1, twins=2)
    plain = run((in_process, 1), study, lab, lab.simulated)
    body = lab.failing_once(tmp_path / "flag", "kill")
    ledger = run((ray_tune, slots), study, lab, body)
    assert lab.outcome(ledger.history) == lab.outcome(plain.history)
    (lost,) = (r for r in ledger.records if r["event"] == "job_lost")
    assert lost["reason"] == "the worker process died: killed, or out of memory"


def test_ray_leaves_no_folder_behind(
    ray_session: None, lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aim_tune.engine import ray_tune

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests run beside this one
    study, seen = lab.study(trials=0, blocks=1, twins=1), set()
    conductor, _ = lab.conduct(study)
    hear = conductor.event

    def event(record: Any) -> None:
        seen.update(tmp_path.glob("aim_ray_*"))
        hear(record)

    monkeypatch.setattr(conductor, "event", event)
    with ray_tune.opened(study, slots=1) as engine:
        engine.run(conductor, study, None, body=lab.simulated)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_cluster_that_does_not_answer_is_named(lab: Any) -> None:
    from aim_tune.engine import ray_tune

    refused = pytest.raises(
        ResourceError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers"
    )
    with refused:
        ray_tune._join("127.0.0.1:1", {"logging_level": "CRITICAL"})
