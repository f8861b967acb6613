"""Workers that start more slowly than others train: every slot comes to work."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import cloudpickle

from aim_tune.spec.request import Job

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests


class SlowToArrive:
    """A body that takes seconds to be unpickled in all workers but the first; notes who starts and works."""

    def __init__(self, folder: Path, body: Callable[..., None]) -> None:
        self.folder, self.body, self.driver = folder, body, os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        mine = self.folder / f"started-{os.getpid()}"
        if os.getpid() == self.driver or mine.exists():
            return
        mine.touch()
        if len(list(self.folder.glob("started-*"))) > 1:
            time.sleep(3)

    def __call__(self, job: Job, study: Any, **kwargs: Any) -> None:
        (self.folder / f"worked-{os.getpid()}").touch()
        time.sleep(0.4)
        self.body(job, study, **kwargs)


def test_a_job_shorter_than_a_start_ends_no_worker_that_starts(
    ray_session: None, lab: Any, tmp_path: Path
) -> None:
    from aim_tune.engine import ray_tune

    study = lab.study(trials=0, blocks=2, twins=12)
    conductor, ledger = lab.conduct(study)
    with ray_tune.opened(study, slots=2) as engine:
        engine.run(conductor, study, None, body=SlowToArrive(tmp_path, lab.simulated))
    assert conductor.finished
    assert not [r for r in ledger.records if r["event"] == "job_lost"]
    assert len(list(tmp_path.glob("started-*"))) == 2
    assert len(list(tmp_path.glob("worked-*"))) == 2
