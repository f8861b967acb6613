"""The engine on Ray Tune 2.60: one job is one trial; slots on a laptop, or all of a cluster.

Ray Tune schedules and nothing else: an own Searcher passes jobs on as one JSON string and brings
events back as JSON strings. No Ray checkpoints, loggers, restore or result files: the ledger is the
state. Actors are reused, so torch is imported once per slot, inside the trial body; nothing heavy
hangs on the trainable, else actors start late and slots stay empty (measured: 0.4 s of overhead a
trial instead of 2.8 s, 0.03 s in steady state).
The conductor is only named for types, so that a worker that imports this file stays light.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import ray
from ray import tune
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from aim_tune.engine.mail import Mail, study_of
from aim_tune.engine.packing import Need, fitting, per_gpu, said
from aim_tune.engine.scratch import scratch
from aim_tune.engine.stop import hangups_blocked
from aim_tune.engine.watchdog import GRACE_S, Watchdog
from aim_tune.errors import ResourceError
from aim_tune.protocol import Machine
from aim_tune.spec.request import Job, Request
from aim_tune.spec.study import Resources, Study

if TYPE_CHECKING:
    from aim_tune.engine.conductor import Conductor
    from aim_tune.engine.stop import Stop

OBJECT_STORE_MIB = 100
"""Only JSON travels; Ray's default is 30 % of the memory."""


class RayTune:
    """An open engine; made by `opened`."""

    grace_s = GRACE_S
    """How long a training may exceed its time limit before its process is ended."""

    def __init__(self, slots: int, gpu: float | None = None) -> None:
        self.slots = slots
        self._gpu = gpu
        """Share of a GPU that a trial asks Ray for; None: the study's."""

    def run(
        self,
        conductor: Conductor,
        study: Study,
        store_root: str | None,
        *,
        stop: Stop | None = None,
        body: Callable[..., None] | None = None,
    ) -> None:
        """Work until the conductor is finished. Raises Interrupted soon after a signal.

        `body` runs a job; None: `twin.run_job`, imported on the worker. Simulations pass their own.
        """
        searcher = _Jobs(conductor, lambda: Watchdog(study.resources.time_limit_s, self.grace_s))
        trial = _trainable(study, store_root, body, self._gpu)
        try:
            with (
                scratch() as folder,
                stop.held() if stop else nullcontext(),
                deaths_cost_one_trial(searcher),
                workers_may_start(),
            ):
                self._tuner(trial, searcher, folder, stop).fit()
        except Exception as error:
            raise (searcher.failure or error) from None
        assert conductor.finished, "Ray Tune ended before the study did"

    def _tuner(
        self, trial: Callable[..., None], searcher: _Jobs, folder: Path, stop: Stop | None
    ) -> tune.Tuner:
        return tune.Tuner(
            trial,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=self.slots,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"job_{trial.trial_id}",
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=f"study_{uuid.uuid4().hex[:12]}",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_Watch(searcher, stop)],
                failure_config=tune.FailureConfig(max_failures=0),  # the conductor counts attempts
            ),
        )


@contextmanager
def opened(
    study: Study,
    *,
    slots: int | None = None,
    address: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Iterator[RayTune]:
    """The engine on a Ray of its own (address None) or on a running cluster; closed at the end.

    Without `slots`, as many trials run at once as the machine or cluster takes. Where this process
    is connected to Ray already, that connection is used and left open. Raises ResourceError where no
    node has what one trial needs, or the cluster is not there.
    """
    with connected(study.resources, slots, address):
        most = room(study.resources)
        if most < 1:
            raise ResourceError(too_small(study.resources))
        yield packed(study, slots, most, say)


def packed(
    study: Study, slots: int | None, most: int, say: Callable[[str], object] = lambda text: None
) -> RayTune:
    """The engine with as many trials at a time as fit: `slots`, `most`, and the memory of the GPUs where
    trials share one."""
    if not 0 < study.resources.gpu < 1:
        return RayTune(min(slots or most, most))
    need = measured(study)
    gpu = fitting(study.resources.gpu, need)
    if text := said(study.resources.gpu, gpu, need):
        say(text)
    most = most * per_gpu(gpu) // per_gpu(study.resources.gpu)
    return RayTune(min(slots or most, most), gpu)


def measured(study: Study) -> Need:
    """What one training takes, alone on a GPU of this Ray. Waits for one."""
    request = Machine(study).ask()
    assert isinstance(request, Request)
    resources = {"num_cpus": study.resources.cpu, "num_gpus": 1}
    found = _probe.options(**resources).remote(study.to_dict(), request.to_dict())
    try:
        return Need(**ray.get(found))
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"one training alone on a GPU ended without a result ({error}): it does not fit, or the GPU "
            "does not work; `python -m aim_tune.doctor` looks at it."
        ) from None


@ray.remote(max_retries=0)
def _probe(study: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """On a worker: imports torch."""
    from aim_tune.gpu_probe import probe

    return probe(Study.from_dict(study), Request.from_dict(request))


def run(
    conductor: Conductor,
    study: Study,
    store_root: str | None,
    *,
    slots: int | None = None,
    address: str | None = None,
) -> None:
    """Open the engine, run, close."""
    with opened(study, slots=slots, address=address) as engine:
        engine.run(conductor, study, store_root)


@contextmanager
def connected(resources: Resources, slots: int | None, address: str | None) -> Iterator[None]:
    """Connected to a Ray of its own (address None) or to a running one."""
    for name in ("ray", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # failures are in the ledger
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": "CRITICAL", "log_to_driver": False}
    with ExitStack() as ends:
        folder = ends.enter_context(scratch()) if address is None else None
        ends.callback(ray.shutdown)  # before the folder goes
        if folder is None:
            _join(str(address), quiet)
        else:
            with hangups_blocked():
                ray.init(
                    num_cpus=max(len(os.sched_getaffinity(0)), (slots or 1) * resources.cpu),
                    object_store_memory=OBJECT_STORE_MIB * 2**20,
                    include_dashboard=False,
                    _temp_dir=str(folder),
                    **quiet,
                )
        yield


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    try:
        if ":" in address:  # Ray itself would end this process after a minute without an answer
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"--address {address}: no Ray cluster answers ({error}). Start one with `ray start "
            "--head` or `ray up`, or leave --address out to use this machine."
        ) from None


def room(resources: Resources) -> int:
    """How many trials the nodes take at once; a trial never spans nodes."""
    need = {"CPU": resources.cpu, "GPU": resources.gpu}
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    return sum(min(int(node.get(k, 0) / v) for k, v in need.items() if v > 0) for node in nodes)


def too_small(resources: Resources) -> str:
    """What to say where no node has what a trial needs."""
    have = ray.cluster_resources()
    most = max(
        (node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0
    )
    together = f" ({most:g} in the machine with most of them)" if resources.gpu > 1 else ""
    return (
        f"one trial needs {resources.cpu} CPUs and {resources.gpu:g} GPUs (resources.cpu, "
        f"resources.gpu), but no node has them: in all there are {have.get('CPU', 0):g} CPUs and "
        f"{have.get('GPU', 0):g} GPUs{together}. Ask for less, for example --set resources.gpu=0, or use "
        "--address with a larger cluster."
    )


class _Jobs(Searcher):
    """Hands the conductor's jobs to Ray Tune and its events back."""

    def __init__(self, conductor: Conductor, watchdog: Callable[[], Watchdog]) -> None:
        super().__init__()
        self._conductor = conductor
        self._watchdog = watchdog
        self._trials: dict[str, _Running] = {}
        self.failure: Exception | None = None
        """What went wrong in the driver itself; Ray would wrap it."""
        self.death: Exception | None = None
        """What Ray says about the trial that is ending."""

    def suggest(self, trial_id: str) -> Any:
        """The next job as a config, None to wait, FINISHED at the end."""
        with self._kept():
            job = self._conductor.next_job()
            if isinstance(job, Job):
                self._trials[trial_id] = _Running(job, self._watchdog())
                return {"job": json.dumps(job.to_dict())}
            return Searcher.FINISHED if self._conductor.finished else None

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """One message of a trial: records for the ledger, in their order."""
        with self._kept():
            trial = self._trials[trial_id]
            if result.get("message", 0) <= trial.read:
                return  # Ray repeats the last result at the end
            trial.read = result["message"]
            trial.reason = result["lost"] or trial.reason
            for record in json.loads(result["records"]):
                trial.watchdog.heard(record)
                self._conductor.event(record)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """The trial has ended, or its process has died."""
        with self._kept():
            trial = self._trials.pop(trial_id, None)
            if trial is None:
                return
            if trial.hung:
                self._conductor.job_hung(trial.job, trial.hung, trial.watchdog.reason)
            elif error or trial.reason:
                self._conductor.job_lost(trial.job, trial.reason or why_it_died(self.death))
            else:
                self._conductor.job_done(trial.job)

    def look_at(self, trial: Any) -> bool:
        """Whether Ray's trial hangs, for the first time it is seen: its process is to be ended now."""
        mine = self._trials.get(trial.trial_id)
        if mine is None:
            return False
        if mine.hung or not mine.watchdog.hanging:
            return False
        mine.hung = mine.watchdog.hanging
        return True

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
            raise

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tuner pickles its searcher; conductor and ledger stay here


@dataclass
class _Running:
    """A trial and what is known of it."""

    job: Job
    watchdog: Watchdog
    read: int = 0
    """Number of the last message."""
    reason: str = ""
    """Why the worker gave up, as it says itself."""
    hung: str | None = None
    """The arm for which the process was ended."""


DEATHS = (
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
)
"""Ends of a worker that Ray Tune 2.60 does not take for the end of its actor."""


@contextmanager
def deaths_cost_one_trial(jobs: _Jobs) -> Iterator[None]:
    """Within, what Ray calls a death of a worker ends its trial, and `jobs` knows why. Ray Tune 2.60 knows
    one kind of death and raises at any other: one training that Ray's memory monitor has ended would end the
    whole study. And it keeps the reason to itself until the trial's files are copied."""
    task_failed, first_result = (
        RayActorManager._actor_task_failed,
        Trial._get_default_result_or_future,
    )

    def failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, DEATHS):
            exception = ray.exceptions.RayActorError(error_msg=str(exception))
        jobs.death = exception
        task_failed(manager, tracked_actor_task, exception)  # calls on_trial_complete
        jobs.death = None

    def result(trial: Trial) -> Any:
        try:
            return first_result(trial)
        except DEATHS:
            trial._default_result_or_future = None
            return None

    with (
        patch.object(RayActorManager, "_actor_task_failed", failed),
        patch.object(Trial, "_get_default_result_or_future", result),
    ):
        yield


@contextmanager
def workers_may_start() -> Iterator[None]:
    """Within, a worker that is free takes the next job and not one whose own worker is just starting. Ray
    Tune 2.60 gives it that one and ends the worker that starts: where starts take longer than jobs, most
    slots never come to work (of 64 on two cores, 18 did)."""
    reuse = TuneController._maybe_reuse_cached_actor

    def reuse_for_who_has_none(controller: TuneController, trial: Trial) -> bool:
        own = controller._trial_to_actor.get(trial)
        starting = own in controller._actor_manager.live_actors
        if starting and trial not in controller._resetting_trials:
            return False
        return reuse(controller, trial)

    with patch.object(TuneController, "_maybe_reuse_cached_actor", reuse_for_who_has_none):
        yield


def why_it_died(error: object) -> str:
    """What is known of a worker that ended without a word, from Ray's exception.

    >>> why_it_died(None)
    'the worker process died: killed, or out of memory'
    """
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        used = re.search(r"[\d.]+ ?[KMGT]i?B used / [\d.]+ ?[KMGT]i?B", text)
        figure = f" ({used[0]})" if used else ""
        return f"Ray ended the worker process: its machine ran out of memory{figure}"
    node = re.search(r"\bnode\b[^.]*(has died|was dead|preempted)", text)
    if node and "worker process has died" not in text:
        return "the machine of the worker was lost"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "the connection to the worker was lost: its machine or its process is gone"
    return "the worker process died: killed, or out of memory"


class _Watch(tune.Callback):
    """Between two steps of Ray Tune, where nothing swallows it: raises Interrupted, ends what hangs."""

    def __init__(self, jobs: _Jobs, stop: Stop | None) -> None:
        self._jobs: _Jobs | None = jobs
        self._stop = stop

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called about ten times a second."""
        if self._stop is not None:
            self._stop.check()
        if self._jobs is None:
            return
        for trial in trials:
            actor = trial.temporary_state.ray_actor
            if actor is not None and self._jobs.look_at(trial):
                ray.kill(actor)  # reaches every node, and a process that no longer runs Python

    def __getstate__(self) -> dict[str, Any]:
        return {"_jobs": None, "_stop": None}


def _trainable(
    study: Study, store_root: str | None, body: Callable[..., None] | None, gpu: float | None
) -> Callable[..., None]:
    """The function Ray Tune runs; it carries nothing but text."""
    study_json = json.dumps(study.to_dict())

    def trial(config: Mapping[str, Any]) -> None:
        _trial(config["job"], study_json, store_root, body)

    need = {"cpu": study.resources.cpu, "gpu": study.resources.gpu if gpu is None else gpu}
    return tune.with_resources(trial, need)


def _trial(
    job_json: str, study_json: str, store_root: str | None, body: Callable[..., None] | None
) -> None:
    """The trial body, on a worker."""
    mail = Mail(tune.report)
    try:
        job = Job.from_dict(json.loads(job_json))
        run = body or _twin_body()
        run(job, study_of(study_json), store_root=store_root, report=mail.put)
        mail.close()
    except Exception as error:
        mail.close(lost=f"{type(error).__name__}: {error}")
        if study_of(study_json).resources.gpu > 0:
            raise  # costs 3 s and the process: a CUDA error can spoil all that runs in it later


def _twin_body() -> Callable[..., None]:
    """Imports torch: on a worker, once per process."""
    from aim_tune.twin import run_job

    return run_job
