"""What MLflow shall show: a training or a verdict as the tags, params and metrics of one flat run.

Pure: the same ledger gives the same content, times included, so that a replay adds nothing. Every tag
stands on every run, because MLflow draws a run without the grouping tag as a loose single one.
Accuracies stay fractions as in the ledger; what is called `_points` is in percentage points.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aim_tune.addons.pictures import IMAGES, memory_images
from aim_tune.ledger import History, Training, TrainingResult
from aim_tune.spec.study import BASELINE, Study
from aim_tune.spec.values import short_hash
from aim_tune.stats.slots import slot_use
from aim_tune.tracking.notes import NOTE_LIMIT, verdict_note

KEY_TAG = "aim_tune.key"
"""study hash/position/arm: how a run is found again."""
STUDY_TAG = "aim_tune.study"
DIGEST_TAG = "aim_tune.mirrored"
"""Hash of the content that a run held when it was last written to the end."""
NOTE_TAG = "mlflow.note.content"
"""Description of a run or an experiment."""
EVERYTHING = "all"
"""Value of arm, block and pair on a run that stands for the whole study."""
BY_STEP = "memory/by step"
"""Key of the pictures that MLflow's slider steps through."""
PHASES = {
    "start": "memory/before training",
    "end": "memory/after training",
    **{f"written/{i}": f"memory/written for image {i + 1}" for i in range(IMAGES)},
}
"""Name of a picture of the memory -> its key. At step 0, where a saved view opens."""

_STATUS = {
    "running": "RUNNING",
    "asked": "KILLED",  # was started, and nobody trains it now
    "failed": "FAILED",
    "oom": "FAILED",
}
_VALUE_LIMIT = 500


class Reading(NamedTuple):
    """One value of one metric."""

    key: str
    value: float
    step: int
    time_ms: int


@dataclass(kw_only=True)
class Seen:
    """What is known to be in the store for one run."""

    run_id: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: set[str] = field(default_factory=set)
    steps: set[tuple[str, int]] = field(default_factory=set)
    """(metric, step)."""
    has_data: bool = False
    images: set[tuple[str, int]] = field(default_factory=set)
    """(key, step)."""
    start_ms: int = 0


@dataclass(frozen=True, kw_only=True)
class DataInput:
    """The data set a run has used, as MLflow's Datasets column shows it."""

    name: str
    digest: str
    settings: str
    """JSON."""
    context: str
    """Which parts were used: "train, val" or "train, val, test"."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A picture at a step of a training."""

    key: str
    """Its name in MLflow; what stands before the slash names its section there."""
    step: int
    pixels: NDArray[np.uint8]
    """[height, width, 3]."""


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """All that one run of MLflow holds."""

    key: str
    name: str
    start_ms: int
    end_ms: int | None
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    data: DataInput | None = None
    images: tuple[Image, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Hash of tags, params, metrics and pictures: equal means that nothing is left to write."""
        readings = [[r.key, r.step, repr(r.value)] for r in self.readings]
        images = [[i.key, i.step] for i in self.images]
        return short_hash([dict(self.tags), dict(self.params), readings, images])


def experiment_name(study: Study) -> str:
    """Name of the study's experiment."""
    return f"aim_tune/{study.name}"


def training_content(study: Study, history: History, training: Training) -> RunContent:
    """The run of one training that was started, finished or not."""
    assert training.started is not None, f"{training.position} {training.arm} was never started"
    result = training.result
    return RunContent(
        key=f"{_hash(study, history)}/{training.position}/{training.arm}",
        name=f"{training.arm} {training.position}",
        start_ms=_ms(training.started),
        end_ms=_ms(training.finished) if training.finished is not None else None,
        status=_STATUS.get(training.status, "FINISHED"),
        tags={
            **_tags(study, history),
            KEY_TAG: f"{_hash(study, history)}/{training.position}/{training.arm}",
            "aim.arm": training.arm,
            "aim.phase": training.stage,
            "aim.block": "none" if training.block is None else str(training.block),
            "aim.pair": training.position,
            "aim.status": "interrupted" if training.status == "asked" else training.status,
            **_result_tags(training),
        },
        params=_params(training),
        readings=tuple(_readings(history, training)),
        data=_data(study, history, tested=training.stage == "confirm"),
        images=tuple(_images(result)),
    )


def retrained_content(study: Study, history: History, training: Training, note: str) -> RunContent:
    """The run of a retraining; each one is a run of its own."""
    content = training_content(study, history, training)
    key = f"{_hash(study, history)}/retrained/{training.arm}/{content.start_ms}"
    tags = {KEY_TAG: key, "aim.phase": "retrained", NOTE_TAG: note[:NOTE_LIMIT]}
    return replace(
        content,
        key=key,
        name=f"retrained {training.arm} {training.position}",
        tags={**content.tags, **tags},
        data=_data(study, history, tested=True),
    )


def verdict_content(
    study: Study,
    history: History,
    verdict: Mapping[str, Any],
    sentence: str,
    *,
    pictured: bool = False,
) -> RunContent:
    """The one run that says what the study has shown; `pictured`: PICTURE will be among its files."""
    now_ms = max(_ms(time.time()), _last_ms(history) + 1)  # newest, so listed first
    word = str(verdict["verdict"]).replace("_", " ")
    key = f"{_hash(study, history)}/verdict"
    return RunContent(
        key=key,
        name=f"verdict: {word}" + (" (interim)" if verdict.get("interim") else ""),
        start_ms=now_ms,
        end_ms=now_ms,
        status="FINISHED",
        tags={
            **_tags(study, history),
            KEY_TAG: key,
            "aim.arm": EVERYTHING,
            "aim.phase": "verdict",
            "aim.block": EVERYTHING,
            "aim.pair": EVERYTHING,
            "aim.status": "ok",
            "aim.verdict": str(verdict["verdict"]),
            NOTE_TAG: verdict_note(verdict, sentence, pictured=pictured),
        },
        params=_study_params(study),
        readings=tuple(
            Reading(f"delta/{name}", float(value), 0, now_ms)
            for name, value in _verdict_figures(verdict)
            if value is not None
        )
        + tuple(Reading(k, v, 0, now_ms) for k, v in _study_cost(study, history).items()),
        data=_data(study, history, tested=True),
    )


def _hash(study: Study, history: History) -> str:
    """The declared study's: adding blocks does not make it another one."""
    return str((history.declared or {}).get("study_hash", study.study_hash))


def _tags(study: Study, history: History) -> dict[str, str]:
    declared = history.declared or {}
    return {
        "aim.comparison": study.name,
        STUDY_TAG: _hash(study, history),
        "aim_tune.data": str(declared.get("data_digest", ""))[:_VALUE_LIMIT],
        "aim_tune.code": str(declared.get("code_hash", "")),
        "mlflow.source.name": "aim_tune",
        "mlflow.source.type": "LOCAL",
    }


def _result_tags(training: Training) -> dict[str, str]:
    result = training.result
    if result is None:
        return {}
    device = ", then ".join(training.devices) or result.device
    tags = {"aim.device": device, "aim.node": result.node}
    return {**tags, "aim.detail": result.detail[:_VALUE_LIMIT]} if result.detail else tags


def _params(training: Training) -> dict[str, str]:
    point = training.point
    shared = {f"shared.{k}": _text(v) for k, v in point.shared.items()}
    addon = {f"addon.{k}": _text(v) for k, v in point.addon.items()}
    seeds = {f"seed.{k}": str(v) for k, v in training.streams.items()}
    return {**shared, **addon, **seeds}


def _study_params(study: Study) -> dict[str, str]:
    """The study's fixed side, each leaf of the file as one param."""
    value = study.to_dict()
    kept = {k: value[k] for k in ("backbone", "data", "recipe", "protocol")}
    return {name: _text(leaf) for name, leaf in _leaves(kept) if leaf is not None}


def _leaves(value: Mapping[str, Any], head: str = "") -> Iterator[tuple[str, Any]]:
    for key, leaf in value.items():
        if isinstance(leaf, Mapping):
            yield from _leaves(leaf, f"{head}{key}.")
        else:
            yield f"{head}{key}", leaf


def _text(value: Any) -> str:
    """A value as a person would write it: 0.00123 rather than 16 digits, lists as JSON."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return (value if isinstance(value, str) else json.dumps(value))[:_VALUE_LIMIT]


def _readings(history: History, training: Training) -> Iterator[Reading]:
    """All metrics of a training, without those that are not a finite number."""
    start = training.started or 0.0
    for m in training.curve:
        moment = _ms(start + m.seconds)
        figures = {
            "val/accuracy": m.val_accuracy,
            "val/loss": m.val_loss,
            "train/loss": m.train_loss,
            "train/lr": m.lr,
        }
        yield from (Reading(k, v, m.step, moment) for k, v in figures.items() if math.isfinite(v))
    if training.result is not None:
        end = _ms(training.finished if training.finished is not None else start)
        result = training.result
        figures = {**_cost(result), **_system(result), **_test(history, training)}
        # Single figures stand at step 0: MLflow then draws bars instead of a line of one point
        yield from (Reading(k, v, 0, end) for k, v in figures.items() if math.isfinite(v))


def _cost(result: TrainingResult) -> dict[str, float]:
    figures = {
        "val/best": result.val_best,
        "cost/seconds": result.seconds,
        "cost/steps": result.steps,
        "cost/step_ms": result.step_ms,
        "cost/peak_mib": result.peak_mib,
        "cost/parameters": result.parameters or None,
        "cost/flops": result.flops,
    }
    return {k: float(v) for k, v in figures.items() if v is not None}


def _system(result: TrainingResult) -> dict[str, float]:
    """What the training took of its machine, under the names by which MLflow knows such figures."""
    figures = {
        "system/cpu_utilization_percentage": result.cpu_percent,
        "system/process_memory_mebibytes": result.rss_mib,
        "system/gpu_0_memory_usage_mebibytes": result.peak_mib,
        "system/gpu_0_utilization_percentage": result.gpu_percent,
    }
    return {k: float(v) for k, v in figures.items() if v is not None}


def _images(result: TrainingResult | None) -> Iterator[Image]:
    """What the memory learned: the phases, each on its own, and start and end by step."""
    if result is None or result.memory is None:
        return
    try:
        phases = memory_images(result.memory)
    except (ValueError, KeyError):
        return  # a damaged record costs its pictures
    yield Image(key=BY_STEP, step=0, pixels=phases["start"])
    yield Image(key=BY_STEP, step=result.steps, pixels=phases["end"])
    for name, key in PHASES.items():
        if name in phases:
            yield Image(key=key, step=0, pixels=phases[name])


def _test(history: History, training: Training) -> dict[str, float]:
    """Test figures of a confirm run, and its difference to the baseline of the same pair."""
    score = training.test_accuracy
    if score is None:
        return {}
    figures = {
        "test/accuracy": score,
        "test/error": 1 - score,
        "test/error_points": 100 * (1 - score),  # MLflow's bars round to two decimals
    }
    baseline = history.trainings.get((training.position, BASELINE))
    if training.arm != BASELINE and baseline is not None and baseline.test_accuracy is not None:
        figures["delta/test_accuracy"] = score - baseline.test_accuracy
        figures["delta/test_points"] = 100 * figures["delta/test_accuracy"]
    return figures


def _verdict_figures(verdict: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name in ("effect_points", "mde_points", "p_better_new_block", "blocks"):
        yield name, verdict.get(name)
    low, high = verdict.get("ci95_points") or (None, None)
    yield "ci95_low_points", low
    yield "ci95_high_points", high


def _study_cost(study: Study, history: History) -> dict[str, float]:
    """What all trainings of the study have cost together, and how much of its slots it used."""
    results = [t.result for t in history.rows() if t.result and t.reused_from is None]
    hours = sum(r.seconds for r in results) / 3600
    on_gpu = sum(r.seconds for r in results if r.device.startswith("cuda")) / 3600
    figures = {"cost/trainings": float(len(results)), "cost/training_hours": hours}
    use = slot_use(study, history)
    return {
        **figures,
        **({"cost/gpu_hours": on_gpu} if on_gpu else {}),
        **({"cost/slots": float(use.slots), "cost/slot_share": use.share} if use else {}),
    }


def _data(study: Study, history: History, *, tested: bool) -> DataInput | None:
    digest = (history.declared or {}).get("data_digest")
    if not digest:
        return None
    return DataInput(
        name=study.data.name,
        digest=str(digest)[:36],  # the most MLflow takes
        settings=json.dumps(dict(study.data.settings)),
        context="train, val, test" if tested else "train, val",
    )


def _last_ms(history: History) -> int:
    return max((_ms(t.started) for t in history.rows() if t.started is not None), default=0)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
