"""What a retraining is asked for: a configuration with what is wished otherwise, checked before it starts."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.artifacts import config as configs
from aim_tune.data.source import check_data
from aim_tune.errors import Fault, StudyError, UserError
from aim_tune.spec import STREAMS, Recipe, Study, derive_seed, dump, load_study, short_hash
from aim_tune.tables import HOUSE
from aim_tune.training.schedules import total_steps

if TYPE_CHECKING:
    from aim_tune.data.info import DataInfo
    from aim_tune.spec import Catalog, Request


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
