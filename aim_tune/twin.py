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
from collections.abc import Callable
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
from aim_tune.training.loop import fit
from aim_tune.training.schedules import total_steps
from aim_tune.training.usage import Usage

Report = Callable[[dict[str, Any]], None]
"""Takes a ledger record (without `time`); returns when it is in good hands."""
OnMeasure = Callable[[Measure], None]
Keep = Callable[[nn.Module, TrainingResult], None]
"""Puts a trained network in good hands."""
ALBUM_IMAGES = 4
"""Validation images that an add-on's album may use."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one training of one arm leaves behind."""

    result: TrainingResult
    model: nn.Module | None
    """The trained network; None where the training failed."""


def run_job(job: Job, study: Study, *, store_root: str | None, report: Report) -> None:
    """Train the arms of `job` in their order and report training_started, epoch and training_done.

    `store_root` is the folder for checkpoints; None: none are written. Raises DataError where the
    data cannot be opened here and ResourceError where the device is missing. A match request is measured
    instead, see `matching`.
    """
    if job.request.stage == "match":
        _measure(job, study, report)
        return
    for arm in job.arms:
        trained = train_arm(
            study,
            job.request,
            arm,
            attempt=job.attempts[arm],
            store_root=store_root,
            report=report,
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
) -> Trained:
    """One arm of a request, trained to its end. Same request, same machine: the same bits.

    `keep` is called with the trained network before its checkpoints are dropped.
    Never raises for what goes wrong within the training: the result's status says it.
    """
    device = prepare(study.resources)
    head = {"position": request.position, "arm": arm, "attempt": attempt}
    place = {"node": node_name(), "device": device_name(device), "pid": os.getpid()}
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


def _measure(job: Job, study: Study, report: Report) -> None:
    """Report the step times of a match request as trainings of no steps."""
    device = prepare(study.resources)
    place = {"node": node_name(), "device": device_name(device)}
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
        found = match(study, catalog, source, job.request, device)
    except Exception as error:
        status, reason = "oom" if _is_out_of_memory(error) else "failed", _reason(error)
    for head in heads:
        one = found.get(str(head["arm"]))
        result = TrainingResult(
            arm=str(head["arm"]),
            status=status,
            detail=one.detail if one else reason,
            step_ms=one.step_ms if one else None,
            parameters=one.parameters if one else 0,
            device=device_name(device),
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
        except Exception as error:
            result = TrainingResult(
                arm=self.arm,
                status="oom" if _is_out_of_memory(error) else "failed",
                detail=_reason(error),
                steps=steps_done,
                allotted_steps=total_steps(self.recipe, len(self.split.train)),
                device=device_name(self.device),
                node=node_name(),
            )
            return Trained(result=result, model=None)

    def train(self, on_measure: OnMeasure, slot: CheckpointSlot | None) -> Trained:
        """Build the network, train it and, in a confirm pair, predict the sealed test examples."""
        study, request, recipe = self.study, self.request, self.recipe
        point = request.arms[self.arm]
        info = self.source.info
        model = build_arm(study, self.catalog, self.arm, point, streams=request.streams, info=info)
        cost = _cost(study, self.arm, point, model, info.image_shape)
        model = model.to(self.device)
        album = self.album(model)
        usage = Usage(self.device)

        def measured(measure: Measure) -> None:
            usage.sample()
            on_measure(measure)

        outcome = fit(
            model,
            self.source,
            split=self.split,
            recipe=recipe,
            streams=request.streams,
            device=self.device,
            on_measure=measured,
            slot=slot,
            time_limit_s=study.resources.time_limit_s,
            checkpoint_s=study.resources.checkpoint_s,
            stop=request.stop.get(self.arm, ()),
        )
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
            device=device_name(self.device),
            node=node_name(),
            weights_sha256=weights_sha256(model),
            predictions=predictions,
            memory=self.pictures(album, model),
            **took,
            **{name: getattr(outcome, name) for name in _FROM_OUTCOME},
        )
        return Trained(result=result, model=model)

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


def prepare(resources: Resources) -> torch.device:
    """The device of a trial, with the process put into the state every training starts from.

    Raises ResourceError where a GPU is asked for and this process sees none.
    """
    torch.set_num_threads(resources.cpu)  # 1 and 2 threads give different weights
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    torch.backends.cudnn.benchmark = False  # its choice depends on timing
    torch.backends.cudnn.deterministic = True
    if resources.gpu <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            f"resources.gpu is {resources.gpu:g}, but this process sees no CUDA device. Set "
            "resources.gpu to 0, or run where a GPU and its driver are."
        )
    return torch.device("cuda", 0)


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


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _reason(error: Exception) -> str:
    """One line for people: what, and the innermost place it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{place}"


def node_name() -> str:
    """The name of this machine."""
    return socket.gethostname()


@lru_cache(maxsize=8)
def device_name(device: torch.device) -> str:
    """Such as "cpu: AMD EPYC" or "cuda: NVIDIA H200"."""
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
