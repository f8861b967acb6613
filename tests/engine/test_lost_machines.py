"""A machine, a worker or memory that goes away: work goes elsewhere, nothing waits for ever."""

from __future__ import annotations

import functools
import re
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle

from aim_tune.spec.request import Job

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


def slow(job: Job, study: Any, *, body: Callable[..., None], **kwargs: Any) -> None:
    for arm in job.arms:
        time.sleep(0.5)
        body(job.only([arm]), study, **kwargs)


@pytest.mark.kills
def test_what_ran_on_a_lost_node_runs_elsewhere_and_nothing_waits_for_ever(
    lab: Any, no_ray: None
) -> None:
    from ray.cluster_utils import Cluster

    from aim_tune.engine import in_process, ray_tune

    study = lab.study(trials=0, blocks=2, twins=3)
    conductor, plain = lab.conduct(study)
    with in_process.opened(study) as engine:
        engine.run(conductor, study, None, body=lab.simulated)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        conductor, ledger = lab.conduct(study)

        def lose_it_when_both_work() -> None:
            until = time.monotonic() + 120
            while time.monotonic() < until:
                if sum(r["event"] == "training_done" for r in list(ledger.records)) >= 4:
                    cluster.remove_node(doomed, allow_graceful=False)
                    return
                time.sleep(0.05)

        killer = threading.Thread(target=lose_it_when_both_work)
        killer.start()
        with ray_tune.opened(study, address=cluster.address) as engine:
            assert engine.slots == 2
            engine.run(conductor, study, None, body=functools.partial(slow, body=lab.simulated))
        killer.join()
        assert lab.outcome(ledger.history) == lab.outcome(plain.history)
        lost = [r for r in ledger.records if r["event"] == "job_lost"]
        assert len(lost) == 1, lost
        assert re.match("the (machine of|connection to) the worker was lost", lost[0]["reason"])
    finally:
        cluster.shutdown()


def test_why_a_worker_died_is_said_as_far_as_ray_knows() -> None:
    from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError

    from aim_tune.engine.ray_tune import why_it_died

    assert "ran out of memory" in why_it_died(OutOfMemoryError("Task was killed"))
    low = RayError("1 worker(s) were killed due to the node running low on memory. Memory on the node "
                   "(IP: 10.0.0.1, ID: 4f) was 3.79GB used / 23.54GB limit (0.161194)")  # fmt: skip
    assert why_it_died(low) == (
        "Ray ended the worker process: its machine ran out of memory (3.79GB used / 23.54GB)"
    )
    node = RayError("The actor died because its node has died. Node Id: 4f")
    assert why_it_died(node) == "the machine of the worker was lost"
    cut = ActorUnavailableError("RPC error: Connection reset by peer", None)
    assert "the connection to the worker was lost" in why_it_died(cut)
    assert "killed, or out of memory" in why_it_died(RayError("end of file"))
    killed = RayError("node_id: 4f. The actor is dead because its worker process has died.")
    assert "killed, or out of memory" in why_it_died(killed)


def test_a_death_that_ray_tune_does_not_know_ends_its_trial_and_not_the_study() -> None:
    """As long as Ray Tune itself raises there; once it does not, `deaths_cost_one_trial` can go."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError

    from aim_tune.engine.ray_tune import deaths_cost_one_trial

    jobs: Any = SimpleNamespace(death=None)
    told: list[tuple[Exception, Exception]] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, e: told.append((e, jobs.death)))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager: Any = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: 0)

    def die(error: Exception) -> None:
        RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=error)

    for error in (OutOfMemoryError("running low on memory"), NodeDiedError("gone")):
        with pytest.raises(RuntimeError, match="unexpected exception"):
            die(error)
        with deaths_cost_one_trial(jobs):
            die(error)
        last, known = told.pop()
        assert isinstance(last, RayActorError)
        assert str(last) == str(known) == str(error)
        assert jobs.death is None
