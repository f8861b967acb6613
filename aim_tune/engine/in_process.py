"""The engine without Ray: one job after the other in this process. For tests, debugging, one slot.

Same points and same results as `ray_tune`. Events reach the ledger while the training runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aim_tune.engine.conductor import Conductor
from aim_tune.engine.resume import code_hash
from aim_tune.engine.stop import Stop
from aim_tune.engine.watchdog import GRACE_S, Hanging, Watchdog, alarm
from aim_tune.spec.request import Job
from aim_tune.spec.study import Study
from aim_tune.twin import prepare, run_job


class InProcess:
    """Runs jobs here; an engine as `ray_tune.RayTune` is one."""

    slots = 1
    grace_s = GRACE_S
    """How long a training may exceed its time limit before it is ended."""

    def run(
        self,
        conductor: Conductor,
        study: Study,
        store_root: str | None,
        *,
        stop: Stop | None = None,
        body: Callable[..., None] = run_job,
    ) -> None:
        """Work until the conductor is finished. Interrupted is raised from within a training.

        `body` runs a job; simulations pass their own.
        """
        limit = study.resources.time_limit_s
        with alarm(limit, self.grace_s) as wind:
            while isinstance(job := conductor.next_job(), Job):
                dog = Watchdog(limit, self.grace_s)

                def hear(record: dict[str, Any], dog: Watchdog = dog) -> None:
                    if record["event"] == "training_started":
                        record = {**record, "code": code_hash()}
                        wind()
                    dog.heard(record)
                    conductor.event(record)

                try:
                    body(job, study, store_root=store_root, report=hear)
                except Exception as error:
                    conductor.job_lost(job, f"{type(error).__name__}: {error}")
                except Hanging:
                    conductor.job_hung(job, dog.arm or job.arms[0], dog.reason)
                else:
                    conductor.job_done(job)


@contextmanager
def opened(
    study: Study, *, slots: int | None = None, address: str | None = None
) -> Iterator[InProcess]:
    """The engine, once it is known that the machine has what a trial needs. Raises ResourceError.

    `slots` and `address` are of no use here; they are accepted because engines share this signature.
    """
    prepare(study.resources)
    yield InProcess()


def run(conductor: Conductor, study: Study, store_root: str | None) -> None:
    """Open the engine, run, close."""
    with opened(study) as engine:
        engine.run(conductor, study, store_root)
