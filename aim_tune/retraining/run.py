"""One retraining: train, read the network again, write every form of it, compare, write figures and card.

In steps that each leave their mark (checkpoints, training.json, metrics.json), so that the same command
goes on after a kill and does nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from aim_tune.artifacts import config as configs
from aim_tune.artifacts.card import model_card
from aim_tune.artifacts.description import Description, description_of, write_description
from aim_tune.artifacts.examples import write_examples
from aim_tune.artifacts.files import write_whole
from aim_tune.artifacts.network import (
    CONFIG,
    WEIGHTS,
    Written,
    prepared_of,
    read_network,
    save_weights,
    write_forms,
)
from aim_tune.artifacts.record import differences
from aim_tune.data.source import open_source
from aim_tune.engine.resume import code_hash, versions
from aim_tune.ledger import unpack_ints
from aim_tune.retraining.folder import (
    CARD,
    FORMAT,
    TRAINING,
    Log,
    Say,
    kept_records,
    read_metrics,
    write_metrics,
)
from aim_tune.retraining.task import Task
from aim_tune.training.evaluate import evaluation_batch
from aim_tune.twin import train_arm

CHECKED = 128
"""Test images on which every written form is compared with the trained network."""
TRIED = 8
"""Validation images that lie in examples/."""


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """What a retraining has come to."""

    task: Task
    log: Log
    metrics: dict[str, Any]
    """{} where there is no network; the log says why."""

    @property
    def well(self) -> bool:
        """Whether the training ended as it should and every file is what it should be."""
        files = self.metrics.get("files", {}).values()
        return self.log.training.status == "ok" and all(f["status"] != "failed" for f in files)


def retrain(task: Task, forms: Sequence[str], *, say: Say) -> Retrained:
    """Train (or take what was trained), write every form and compare it, write figures and card."""
    log = Log(task, say)
    kept = kept_records(task)
    if kept is None:
        task.out.mkdir(parents=True, exist_ok=True)
        train_arm(
            task.study,
            task.request,
            task.arm,
            store_root=str(task.out / "checkpoints"),
            report=log.take,
            keep=lambda model, result: save_weights(task.out / WEIGHTS, model),
        )
    else:
        log.replay(kept)
        say("  was trained before by the same command; --force trains it again")
    if not (task.out / TRAINING).is_file():
        return Retrained(task=task, log=log, metrics={})
    per_class = log.score()
    done = read_metrics(task.out)
    if kept is None or done.get("asked") != task.asked or _lacks(done, forms):
        done = _write(task, log, forms, per_class, say)
    return Retrained(task=task, log=log, metrics=done)


def _lacks(done: Mapping[str, Any], forms: Sequence[str]) -> bool:
    """Whether a form that is wanted is not there and whole."""
    return any(done["files"].get(form, {}).get("status") != "same" for form in forms)


def network_of(task: Task, log: Log) -> nn.Module:
    """The trained network, read from its file and compared with what was trained."""
    result = log.training.result
    assert result is not None, "only a finished training has a network"
    return read_network(
        task.out / WEIGHTS, task.study, task.request, info=task.info, sha256=result.weights_sha256
    )


def test_pixels(task: Task) -> torch.Tensor:
    """The first CHECKED test images as pixels."""
    source = open_source(task.study.data, task.catalog)
    size = min(CHECKED, evaluation_batch(task.recipe, task.info.image_shape))
    images = next(iter(source.test_batches(size, torch.device("cpu"))))
    return source.pixels(images)


test_pixels.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


def about(task: Task) -> Description:
    """What the network takes and gives."""
    source = open_source(task.study.data, task.catalog)
    return description_of(f"{task.study.name}-{task.arm}", task.info, source.preparation)


def _write(
    task: Task, log: Log, forms: Sequence[str], per_class: Sequence[Any], say: Say
) -> dict[str, Any]:
    """Everything but the weights; metrics.json comes last and says that all of it is there."""
    network, described = network_of(task, log), about(task)
    write_description(task.out, described)
    _write_examples(task, described)
    written = list(_forms(task, network, described, forms, log, say))
    metrics = _metrics(task, log, written, per_class)
    own = {**task.config, "study": task.study.to_dict(), "streams": dict(task.request.streams)}
    write_whole(task.out / CONFIG, configs.config_text(own, task.catalog))
    write_whole(task.out / CARD, model_card(metrics, own, described))
    write_metrics(task.out, metrics)
    return metrics


def _forms(
    task: Task,
    network: nn.Module,
    described: Description,
    forms: Sequence[str],
    log: Log,
    say: Say,
) -> Iterator[Written]:
    """Each form, said as it is done."""
    pixels = test_pixels(task)
    prepared = prepared_of(network, described)
    weights = Written(form="weights", status="same", detail=_agreement(log, prepared(pixels)))
    for one in (weights, *write_forms(task.out, prepared, described, pixels, forms)):
        word = {"same": "checked", "left_out": "left out", "failed": "FAILED"}[one.status]
        say(f"  {one.file:<12} {word}: {one.detail}")
        yield one


def _agreement(log: Log, scores: torch.Tensor) -> str:
    """How many classes are those that were predicted right after the training."""
    result = log.training.result
    if result is None or result.predictions is None:
        return "read again, same digest"
    then = unpack_ints(result.predictions)[: len(scores)]
    same = int((scores.argmax(1).numpy() == then).sum())
    return f"read again, same digest; same class for {same} of {len(scores)} test images"


def _write_examples(task: Task, described: Description) -> None:
    source = open_source(task.study.data, task.catalog)
    positions = source.split(task.request.streams["split"]).val[:TRIED]
    images, labels = next(iter(source.pool_batches([positions], torch.device("cpu"))))
    names = [described.classes[label] for label in labels.tolist()]
    write_examples(task.out, source.pixels(images), names, described.preparation)


def _metrics(
    task: Task, log: Log, written: Sequence[Written], per_class: Sequence[Any]
) -> dict[str, Any]:
    training = log.training
    assert training.result is not None
    now = {"data_digest": task.info.digest, "code_hash": code_hash(), "versions": versions()}
    found = differences(task.config, training, changes=task.changes, now=now)
    data = {
        name: getattr(task.info, name)
        for name in ("name", "classes", "train", "val", "test", "digest")
    }
    return {
        "format": FORMAT,
        "asked": task.asked,
        "arm": task.arm,
        "test_accuracy": training.test_accuracy,
        "per_class": [list(row) for row in per_class],
        "equals_recorded": not found,
        "changes": list(task.changes),
        "differences": found,
        "result": {**training.result.to_dict(), "predictions": None, "memory": None},
        "curve": [asdict(m) for m in training.curve],
        "data": data,
        "code_hash": now["code_hash"],
        "versions": now["versions"],
        "files": {one.form: {**asdict(one), "file": one.file} for one in written},
    }
