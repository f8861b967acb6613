"""One retraining, from a configuration to a folder with a network that was read again and compared.

In steps that each leave their mark (checkpoints, training.json, metrics.json), so that the same command
goes on after a kill and does nothing twice. Of the top layer, because it wires; the verb `retrain` calls
it once or several times. Reads the sealed test labels once per network, at the end.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.artifacts import config as configs
from aim_tune.artifacts.card import model_card
from aim_tune.artifacts.description import description_of, write_description
from aim_tune.artifacts.examples import FOLDER as EXAMPLES
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
from aim_tune.artifacts.program import ONNX, PROGRAM
from aim_tune.artifacts.record import differences
from aim_tune.data.sealed import test_labels
from aim_tune.data.source import check_data, open_source
from aim_tune.engine.resume import code_hash, declaration, versions
from aim_tune.errors import Fault, StudyError, UserError
from aim_tune.ledger import History, pack_bits, unpack_ints
from aim_tune.spec import STREAMS, Recipe, Study, derive_seed, dump, load_study, short_hash
from aim_tune.tables import HOUSE
from aim_tune.training.evaluate import evaluation_batch
from aim_tune.training.schedules import total_steps
from aim_tune.twin import train_arm

if TYPE_CHECKING:
    import torch
    from torch import nn

    from aim_tune.artifacts.description import Description
    from aim_tune.data.info import DataInfo
    from aim_tune.ledger import Training
    from aim_tune.spec import Catalog, Request

FORMAT = "aim_tune.retrained/2"
TRAINING, METRICS, CARD = "training.json", "metrics.json", "model_card.md"
CHECKED = 128
"""Test images on which every written form is compared with the trained network."""
TRIED = 8
"""Validation images that lie in examples/."""
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted otherwise than recorded. Nothing: the recorded training is repeated."""

    overrides: tuple[str, ...] = ()
    """Texts of --set."""
    seed: int | None = None
    """Fresh random streams."""
    steps: int | None = None
    epochs: int | None = None
    patience: int | None = None
    """Validation passes without a gain after which the training ends."""
    data: Path | None = None
    """Other images: see `data_overrides`."""
    device: str | None = None
    """cpu or cuda."""

    def changes(self) -> list[str]:
        """Each in words."""
        found = [f"changed by --set: {text}" for text in self.overrides]
        found += ["fresh random streams (--seed)"] if self.seed is not None else []
        found += [f"own data (--data {self.data})"] if self.data is not None else []
        found += [f"another budget (--steps {self.steps})"] if self.steps is not None else []
        found += [f"another budget (--epochs {self.epochs})"] if self.epochs is not None else []
        found += [f"early stopping (--patience {self.patience})"] if self.patience else []
        return found


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that is known before the training starts."""

    config: Mapping[str, Any]
    study: Study
    catalog: Catalog
    request: Request
    info: DataInfo
    out: Path
    changes: tuple[str, ...]

    @property
    def arm(self) -> str:
        """The one arm."""
        return next(iter(self.request.arms))

    @property
    def steps(self) -> int:
        """Optimizer steps of the training."""
        return total_steps(self.recipe, self.info.train)

    @property
    def recipe(self) -> Recipe:
        """How it is trained."""
        point = self.request.arms[self.arm]
        return self.study.recipe_of(self.arm, point.shared, self.request.steps.get(self.arm))

    @cached_property
    def asked(self) -> str:
        """Identity of what is trained: a folder of anything else is not gone on with."""
        return short_hash([self.study.identity(), self.info.digest, self.request.to_dict()])


def prepare(path: Path, config: Mapping[str, Any], wish: Wish, out: Path) -> Task:
    """The configuration validated as a study file is, with what is wished; the data looked at."""
    first, request = configs.asked(config)
    texts = [*data_overrides(first, wish.data), *_own_overrides(wish), *wish.overrides]
    study, catalog = _validated(path, config, texts)
    if wish.seed is not None:
        streams = {name: derive_seed(wish.seed, "retrain", name) for name in STREAMS}
        request = replace(request, streams=streams)
    info = check_data(study.data, catalog)
    task = Task(config=config, study=study, catalog=catalog, request=request, info=info, out=out,
                changes=tuple(wish.changes()))  # fmt: skip
    return replace(task, request=replace(request, steps=_granted(task, wish)))


def data_overrides(study: Study, data: Path | None) -> list[str]:
    """The study's data section for other images at `data`: a folder with train/CLASS/ is a folder of
    images, anything else the root of the study's own data set. Raises UserError where it is neither."""
    if data is None:
        return []
    if not data.exists():
        raise UserError(f"--data {data} is not there; give a folder with train/CLASS/ images in it")
    settings = dict(study.data.settings)
    if (data / "train").is_dir() and any(p.is_dir() for p in (data / "train").iterdir()):
        row = {"name": "image_folder", "root": str(data.resolve()),
               "image_size": settings.get("image_size", 32)}  # fmt: skip
        if not (data / "test").is_dir():
            row["test_share"] = settings.get("test_share") or 0.2
        return [f"data={json.dumps(row)}"]
    if "root" in settings:
        kept = {k: v for k, v in settings.items() if k not in ("train_images", "val_images")}
        row = {"name": study.data.name, **kept, "root": str(data.resolve())}
        return [f"data={json.dumps(row)}"]
    raise UserError(
        f"--data {data} has no folder train/ with one folder per class in it, and the study's data set "
        f"{study.data.name!r} is not read from a folder. Expected: {data / 'train' / 'CLASS' / '*.jpg'}"
    )


def _own_overrides(wish: Wish) -> list[str]:
    found = []
    if wish.patience:
        found.append(f"recipe.early_stopping_patience={wish.patience}")
    if wish.device is not None:
        found.append(f"resources.gpu={0 if wish.device == 'cpu' else 1}")
    return found


def _granted(task: Task, wish: Wish) -> dict[str, int]:
    """Steps of the arm, where they are not the recipe's."""
    arm = task.arm
    if wish.steps is not None:
        return {arm: wish.steps}
    if wish.epochs is not None:
        epochs = replace(task.recipe, steps=None, epochs=wish.epochs)
        return {arm: total_steps(epochs, task.info.train)}
    asked = [text.partition("=")[0].strip() for text in wish.overrides]
    if wish.data is not None or any(
        key in ("recipe", "recipe.steps", "recipe.epochs") for key in asked
    ):
        return {}
    plain = replace(task, request=replace(task.request, steps={}))
    return {} if task.steps == plain.steps else dict(task.request.steps)


def _validated(
    path: Path, config: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[Study, Catalog]:
    """The study of a configuration, checked as a study file is: people edit these files."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        file.write_text(dump(config["study"]), encoding="utf-8")
        try:
            return load_study(file, HOUSE, overrides)
        except StudyError as error:
            raise StudyError([_moved(f, file, f"{path}, study") for f in error.faults]) from None


def _moved(fault: Fault, file: Path, where: str) -> Fault:
    """A fault of the temporary file as one of the configuration."""
    return replace(fault, where=where) if str(file) in fault.where else fault


# --- the folder -------------------------------------------------------------------------------------


def kept_records(task: Task) -> list[dict[str, Any]] | None:
    """The records of the training, where this very one was finished in its folder before; else None."""
    try:
        kept = json.loads((task.out / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    there = kept.get("asked") == task.asked and (task.out / WEIGHTS).is_file()
    return list(kept["records"]) if there else None


def check_free(task: Task, *, force: bool) -> None:
    """Raise UserError where the folder holds another network; with `force` it is removed."""
    names = (WEIGHTS, TRAINING, METRICS)
    if force:
        for name in (*names, PROGRAM, ONNX, CARD, CONFIG):
            (task.out / name).unlink(missing_ok=True)
        shutil.rmtree(task.out / EXAMPLES, ignore_errors=True)
    elif kept_records(task) is None and any((task.out / name).exists() for name in names):
        raise UserError(
            f"{task.out} holds another network already; --force replaces it, --out names another folder"
        )


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a folder; {} where it is not whole yet."""
    try:
        return dict(json.loads((folder / METRICS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


class Log:
    """The records of one training, as a ledger would hold them."""

    def __init__(self, task: Task, say: Say) -> None:
        self._task, self._say = task, say
        self._records: list[dict[str, Any]] = []
        self.history = History()
        self._apply(declaration(task.study, task.info))
        position = task.request.position
        self._apply({"event": "asked", "position": position, "request": task.request.to_dict()})

    @property
    def training(self) -> Training:
        """The one training."""
        return self.history.trainings[self._task.request.position, self._task.arm]

    def take(self, record: Mapping[str, Any]) -> None:
        """A record of the training; validation passes are said. The last one is stored with the others."""
        own = self._apply(record)
        self._records.append(own)
        if record["event"] == "epoch":
            accuracy = f"{100 * record['val_accuracy']:6.2f} %"
            self._say(
                f"  step {record['step']:>6}  validation {accuracy}  {record['seconds']:.0f} s"
            )
        elif record["event"] == "training_done" and record["result"]["status"] not in _NO_NETWORK:
            kept = {"format": FORMAT, "asked": self._task.asked, "records": self._records}
            write_whole(self._task.out / TRAINING, json.dumps(kept) + "\n")

    def replay(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take what was stored, in silence."""
        for record in records:
            self._records.append(self._apply(record))

    def score(self) -> list[tuple[float, int]]:
        """Compare the predictions with the sealed labels; [(share right, images)] of each class."""
        task, result = self._task, self.training.result
        if result is None or result.predictions is None:
            return []
        labels = test_labels(task.study.data, task.catalog)
        head = {"position": task.request.position}
        self._apply({"event": "test_look", **head, "arms": [task.arm], "examples": len(labels)})
        correct = unpack_ints(result.predictions) == labels
        test = {task.arm: {"accuracy": float(correct.mean()), "correct": pack_bits(correct)}}
        self._apply({"event": "request_done", **head, "test": test})
        of = [correct[labels == label] for label in range(task.info.classes)]
        return [(float(part.mean()) if len(part) else 0.0, len(part)) for part in of]

    def _apply(self, record: Mapping[str, Any]) -> dict[str, Any]:
        own = {"time": time.time(), **record}
        self.history.apply(own)
        return own


_NO_NETWORK = ("failed", "oom")

# --- the steps --------------------------------------------------------------------------------------


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
    import torch

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


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_whole(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


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
    import torch

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
