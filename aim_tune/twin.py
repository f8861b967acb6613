"""The trial body: trains the arms of a job one after the other and reports what happens.

Runs on a worker or in the driver; knows no Ray, Optuna or MLflow and never sees a test label.
Choice: an arm that fails ends with status `failed` and its siblings go on; trouble that concerns all
arms alike (data that cannot be opened) is raised, so that the engine calls the job lost.
A reused process keeps state, so threads, dtype and backend flags are set anew for each training.
"""

from __future__ import annotations

import gc
import os
import platform
import socket
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aim_tune.arms import Cost, arm_cost, build_arm
from aim_tune.data.source import Source, Split, open_source
from aim_tune.errors import ResourceError
from aim_tune.ledger import Measure, TrainingResult, pack_ints
from aim_tune.matching import match
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.request import Job, Point, Request
from aim_tune.spec.study import Recipe, Resources, Study
from aim_tune.spec.values import canonical
from aim_tune.tables import catalog_of
from aim_tune.training.checkpoints import CheckpointSlot, CheckpointStore
from aim_tune.training.compiler import check_compiler
from aim_tune.training.evaluate import predict_test, weights_sha256
from aim_tune.training.group import (
    ALONE,
    Group,
    RankFailed,
    RankLost,
    Ranks,
    World,
    following,
    leading,
)
from aim_tune.training.loop import Outcome, fit
from aim_tune.training.schedules import total_steps
from aim_tune.training.usage import Usage

Report = Callable[[dict[str, Any]], None]
"""Takes a ledger record (without `time`); returns when it is in good hands."""
OnMeasure = Callable[[Measure], None]
Keep = Callable[[nn.Module, TrainingResult], None]
"""Puts a trained network in good hands."""
FOLLOW = "from aim_tune.twin import follow; follow()"
"""What the other ranks of a training on several devices run."""
ALBUM_IMAGES = 4
"""Validation images that an add-on's album may use."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one training of one arm leaves behind."""

    result: TrainingResult
    model: nn.Module | None
    """The trained network; None where the training failed."""


def run_job(
    job: Job,
    study: Study,
    *,
    store_root: str | None,
    report: Report,
    world: World | None = None,
) -> None:
    """Train the arms of `job` in their order and report training_started, epoch and training_done.

    `store_root` is the folder for checkpoints; None: none are written. Raises DataError where the
    data cannot be opened here and ResourceError where the device is missing. A match request is measured
    instead, see `matching`. `world`: several devices for one training; None: those of resources.gpu.
    """
    if job.request.stage == "match":
        _measure(job, study, report, world or world_of(study.resources))
        return
    for arm in job.arms:
        trained = train_arm(
            study,
            job.request,
            arm,
            attempt=job.attempts[arm],
            store_root=store_root,
            report=report,
            world=world,
        )
        del trained  # give the memory back before the next arm is built
        _free(study.resources)


def train_arm(
    study: Study,
    request: Request,
    arm: str,
    *,
    attempt: int = 1,
    store_root: str | None = None,
    report: Report = lambda record: None,
    keep: Keep | None = None,
    world: World | None = None,
) -> Trained:
    """One arm of a request, trained to its end. Same request, same machine: the same bits.

    `keep` is called with the trained network before its checkpoints are dropped. `world` as in `run_job`.
    Never raises for what goes wrong within the training, as the result's status says it, but for RankLost.
    """
    world = world or world_of(study.resources)
    device = prepare(study.resources, world)
    head = {"position": request.position, "arm": arm, "attempt": attempt}
    place = {"node": node_name(), "device": device_name(device, world), "pid": os.getpid()}
    # First of all: whoever hangs from here on is known.
    report({"event": "training_started", **head, **place})
    check_compiler(study)
    catalog = catalog_of(study.plugins)
    source = open_source(study.data, catalog)
    split = source.split(request.streams["split"])

    def on_measure(measure: Measure) -> None:
        report({"event": "epoch", **head, **asdict(measure)})

    task = _Task(
        study=study,
        catalog=catalog,
        source=source,
        split=split,
        request=request,
        arm=arm,
        device=device,
        world=world,
    )
    slot = None
    if store_root is not None:
        slot = CheckpointSlot(CheckpointStore(store_root), request.position, arm, attempt)
    trained = task.run(on_measure, slot)
    if keep is not None and trained.model is not None:
        keep(trained.model, trained.result)
    report({"event": "training_done", **head, "result": trained.result.to_dict()})
    if slot is not None:
        slot.drop()  # only now: the result is in good hands
    return trained


def follow() -> None:
    """The life of a rank beside 0 of a training on several devices: takes the same steps, says nothing."""
    following(_follow, lambda error: (_status(error), _reason(error)))


def _follow(group: Ranks, given: Mapping[str, Any]) -> None:
    study, request = Study.from_dict(given["study"]), Request.from_dict(given["request"])
    device = prepare(study.resources, group.world, group.rank)
    catalog = catalog_of(study.plugins)
    source = open_source(study.data, catalog)
    if request.stage == "match":
        match(study, catalog, source, request, device, group)
        return
    task = _Task(
        study=study,
        catalog=catalog,
        source=source,
        split=source.split(request.streams["split"]),
        request=request,
        arm=given["arm"],
        device=device,
        world=group.world,
    )
    task.fit(task.build(), lambda measure: None, None, group)


def _ranks(
    world: World | None, study: Study, request: Request, arm: str | None
) -> AbstractContextManager[Group]:
    """The other devices' processes, at work on the same; nobody where there is one device."""
    if world is None:
        return nullcontext(ALONE)
    task = {"study": study.to_dict(), "request": request.to_dict(), "arm": arm}
    return leading(world, FOLLOW, task)


def _measure(job: Job, study: Study, report: Report, world: World | None) -> None:
    """Report the step times of a match request as trainings of no steps."""
    device = prepare(study.resources, world)
    place = {"node": node_name(), "device": device_name(device, world)}
    heads = [
        {"position": job.request.position, "arm": arm, "attempt": job.attempts[arm]}
        for arm in job.arms
    ]
    for head in heads:
        report({"event": "training_started", **head, **place, "pid": os.getpid()})
    check_compiler(study)
    catalog = catalog_of(study.plugins)
    found, status, reason = {}, "ok", ""
    try:
        source = open_source(study.data, catalog)
        with _ranks(world, study, job.request, None) as group:
            found = match(study, catalog, source, job.request, device, group)
    except RankLost:
        raise
    except Exception as error:
        status, reason = _status(error), _reason(error)
    for head in heads:
        one = found.get(str(head["arm"]))
        result = TrainingResult(
            arm=str(head["arm"]),
            status=status,
            detail=one.detail if one else reason,
            step_ms=one.step_ms if one else None,
            parameters=one.parameters if one else 0,
            device=device_name(device, world),
            node=node_name(),
        )
        report({"event": "training_done", **head, "result": result.to_dict()})


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One training with all it needs on this machine."""

    study: Study
    catalog: Catalog
    source: Source
    split: Split
    request: Request
    arm: str
    device: torch.device
    world: World | None
    """Several devices, `device` being this process's; None: it is the only one."""

    @property
    def recipe(self) -> Recipe:
        shared = self.request.arms[self.arm].shared
        return self.study.recipe_of(self.arm, shared, self.request.steps.get(self.arm))

    def run(self, on_measure: OnMeasure, slot: CheckpointSlot | None) -> Trained:
        """`train`, with every exception turned into a result."""
        steps_done = 0

        def remember(measure: Measure) -> None:
            nonlocal steps_done
            steps_done = measure.step
            on_measure(measure)

        try:
            return self.train(remember, slot)
        except RankLost:
            raise
        except Exception as error:
            result = TrainingResult(
                arm=self.arm,
                status=_status(error),
                detail=_reason(error),
                steps=steps_done,
                allotted_steps=total_steps(self.recipe, len(self.split.train)),
                device=device_name(self.device, self.world),
                node=node_name(),
            )
            return Trained(result=result, model=None)

    def train(self, on_measure: OnMeasure, slot: CheckpointSlot | None) -> Trained:
        """Build the network, train it and, in a confirm pair, predict the sealed test examples."""
        study, request, recipe = self.study, self.request, self.recipe
        point = request.arms[self.arm]
        info = self.source.info
        model = self.build()
        cost = _cost(study, self.arm, point, model, info.image_shape)
        model = model.to(self.device)
        album = self.album(model)
        usage = Usage(self.device)

        def measured(measure: Measure) -> None:
            usage.sample()
            on_measure(measure)

        with _ranks(self.world, study, request, self.arm) as group:
            outcome = self.fit(model, measured, slot, group)
        took = usage.figures()
        predictions = None
        if request.test and outcome.status != "oom":
            classes = predict_test(model, self.source, recipe=recipe, device=self.device)
            predictions = pack_ints(classes.cpu().numpy())
        result = TrainingResult(
            arm=self.arm,
            parameters=cost.parameters,
            trainable=cost.trainable,
            flops=cost.flops,
            device=device_name(self.device, self.world),
            node=node_name(),
            weights_sha256=weights_sha256(model),
            predictions=predictions,
            memory=self.pictures(album, model),
            **took,
            **{name: getattr(outcome, name) for name in _FROM_OUTCOME},
        )
        return Trained(result=result, model=model)

    def build(self) -> nn.Module:
        """The network, the same in every process."""
        point, streams = self.request.arms[self.arm], self.request.streams
        info = self.source.info
        return build_arm(self.study, self.catalog, self.arm, point, streams=streams, info=info)

    def fit(
        self,
        model: nn.Module,
        on_measure: OnMeasure,
        slot: CheckpointSlot | None,
        group: Group,
    ) -> Outcome:
        """Train it, alone or as one of a group."""
        return fit(
            model,
            self.source,
            split=self.split,
            recipe=self.recipe,
            streams=self.request.streams,
            device=self.device,
            on_measure=on_measure,
            slot=slot,
            time_limit_s=self.study.resources.time_limit_s,
            checkpoint_s=self.study.resources.checkpoint_s,
            stop=self.request.stop.get(self.arm, ()),
            group=group,
        )

    def album(self, model: nn.Module) -> Any:
        """What takes pictures of the add-on in its first confirm run; None in any other training."""
        addon = self.study.addon
        entry = self.catalog.addons[addon.name] if addon is not None else None
        if entry is None or (self.arm, self.request.position) != (
            entry.primary,
            "block/0/confirm/0",
        ):
            return None
        make = entry.load_album()
        return None if make is None else make(model)

    def pictures(self, album: Any, model: nn.Module) -> dict[str, Any] | None:
        """The finished album, with what the network does on the first validation images."""
        if album is None:
            return None
        batch = [self.split.val[:ALBUM_IMAGES]]
        images, labels = next(iter(self.source.pool_batches(batch, self.device)))
        try:
            return album.finish(model, images, labels.tolist()).to_dict()
        except Exception as error:  # a picture must not cost a training
            warnings.warn(f"no pictures of {self.arm}: {_reason(error)}", stacklevel=2)
            return None


_FROM_OUTCOME = (
    "status", "detail", "steps", "allotted_steps", "val_accuracy", "val_best", "seconds", "step_ms",
    "peak_mib",
)  # fmt: skip


def world_of(resources: Resources) -> World | None:
    """The devices of one training where they are several; None where it has one."""
    return World.of_gpus(int(resources.gpu)) if resources.gpu > 1 else None


def prepare(resources: Resources, world: World | None = None, rank: int = 0) -> torch.device:
    """The device of a trial (with a `world`, of a rank), with the process put into the state every training
    starts from. The ranks share the trial's threads.

    Raises ResourceError where this process does not see the GPUs that are asked for.
    """
    world = world or world_of(resources)
    ranks = len(world.devices) if world else 1
    torch.set_num_threads(max(1, resources.cpu // ranks))  # 1 and 2 give different weights
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False  # its choice depends on timing
    torch.backends.cudnn.deterministic = True
    device = "cuda:0" if resources.gpu > 0 else "cpu"
    device = world.devices[rank] if world else device
    if device.startswith("cuda"):
        _check_gpus(resources.gpu, ranks)
    return torch.device(device)


def _check_gpus(asked: float, needed: int) -> None:
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if seen < needed:
        few = "no CUDA device" if not seen else f"{seen} CUDA device{'s' * (seen > 1)}"
        lower = "0" if not seen else f"{seen} or less"
        raise ResourceError(
            f"resources.gpu is {asked:g}, but this process sees {few}. Set resources.gpu to {lower}, or run "
            f"where {'a GPU and its' if needed == 1 else f'{needed} GPUs and their'} driver are."
        )


_COSTS: dict[tuple[str, str, str], Cost] = {}


def _cost(
    study: Study, arm: str, point: Point, model: nn.Module, image_shape: tuple[int, int, int]
) -> Cost:
    """Cost of a network, counted once for each design in a process."""
    key = (study.study_hash, arm, canonical(point.addon))
    if key not in _COSTS:
        _COSTS[key] = arm_cost(model, image_shape)
    return _COSTS[key]


def _free(resources: Resources) -> None:
    if resources.gpu > 0:
        gc.collect()
        torch.cuda.empty_cache()


def _status(error: Exception) -> str:
    """How a training ends that `error` ended."""
    if isinstance(error, RankFailed):
        return error.status
    return "oom" if _is_out_of_memory(error) else "failed"


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _reason(error: Exception) -> str:
    """One line for people: what, and the innermost place it came from."""
    if isinstance(error, RankFailed):
        return str(error)  # has both
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{place}"


def node_name() -> str:
    """The name of this machine."""
    return socket.gethostname()


@lru_cache(maxsize=8)
def device_name(device: torch.device, world: World | None = None) -> str:
    """Such as "cpu: AMD EPYC", "cuda: NVIDIA H200" or "2 x cuda: NVIDIA H200"."""
    if world is not None:
        return f"{len(world.devices)} x {device_name(device)}"
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"cpu: {_cpu_model()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
