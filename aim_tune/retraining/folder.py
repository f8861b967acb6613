"""The folder of a retrained network: its files, and the record of its training.

`Log` holds the records as a ledger would, and stores them when the training is over. It reads the sealed
test labels, once per network.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.artifacts.examples import FOLDER as EXAMPLES
from aim_tune.artifacts.files import write_whole
from aim_tune.artifacts.network import CONFIG, WEIGHTS
from aim_tune.artifacts.program import ONNX, PROGRAM
from aim_tune.data.sealed import test_labels
from aim_tune.engine.resume import declaration
from aim_tune.errors import UserError
from aim_tune.ledger import History, pack_bits, unpack_ints

if TYPE_CHECKING:
    from aim_tune.ledger import Training
    from aim_tune.retraining.task import Task

FORMAT = "aim_tune.retrained/2"
TRAINING, METRICS, CARD = "training.json", "metrics.json", "model_card.md"
NO_NETWORK = ("failed", "oom")
"""Statuses of a training that leaves no network."""
Say = Callable[[str], None]


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


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json."""
    write_whole(folder / METRICS, json.dumps(metrics, indent=2) + "\n")


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
        elif record["event"] == "training_done" and record["result"]["status"] not in NO_NETWORK:
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
