"""Retrained networks in MLflow: a run each, and versions in the model registry.

The registry gets a torch.export program (no pickle) with signature and input example; what it gives back
is loaded and compared by the caller. MlflowClient only, but for `save_model`, which writes a folder.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from aim_tune.errors import UserError
from aim_tune.ledger import History, Training
from aim_tune.spec.study import Study
from aim_tune.tracking.content import experiment_name, retrained_content
from aim_tune.tracking.place import default_uri, unreachable
from aim_tune.tracking.store import Store

SCHEME = "models:/"
_NAME = re.compile(r"[^/:%\"'\\]{1,200}")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """A retraining in MLflow."""

    uri: str
    """Of the store."""
    experiment: str
    experiment_id: str
    run_id: str


def log_retrained(
    *,
    study: Study,
    history: History,
    training: Training,
    note: str,
    files: Sequence[Path],
    results: Path,
    uri: str | None = None,
) -> Logged:
    """Log one retraining with its files; the same one again adds nothing.

    `history` holds the records of this training alone. It goes to an experiment of its own, so that
    the study's holds what the ledger holds. Raises ResourceError where the store cannot be reached.
    """
    name = f"{experiment_name(study)}/retrained"
    artifacts = None if uri else results / "mlartifacts" / study.name / "retrained"
    store = Store(uri or default_uri(results), artifacts=artifacts)
    store.open(name, f"Networks retrained from exported configurations of {study.name}.")
    try:
        content = retrained_content(study, history, training, note)
        seen = store.write(content, store.find(content.key))
        store.attach(seen, files)
    except Exception as error:
        raise unreachable(store.uri, error) from error
    return Logged(
        uri=store.uri, experiment=name, experiment_id=store.experiment_id, run_id=seen.run_id
    )


def check_name(name: str) -> None:
    """Raise UserError where the registry would not take a name."""
    if not _NAME.fullmatch(name) or not name.strip():
        raise UserError(
            f"--register {name!r}: a name has 1 to 200 characters, none of them / : % \" ' or \\"
        )


def register(
    logged: Logged,
    name: str,
    network: Any,
    pixels: np.ndarray,
    *,
    classes: int,
    extra: Sequence[Path],
    tags: Mapping[str, str],
    note: str,
    compare: Callable[[Callable[[np.ndarray], np.ndarray]], str],
) -> tuple[str, str]:
    """(URI of a new version of the registered model NAME, what `compare` says of it).

    `network` is an nn.Module that takes pixels; `pixels` [B, C, H, W] is its input example; `extra` files
    travel with it. `compare` gets what the loaded model computes and raises where that differs: the
    version is deleted again then. Raises ResourceError where the store does not take it.
    """
    try:
        with _speaking_to(logged.uri) as client, tempfile.TemporaryDirectory() as home:
            folder = Path(home) / "model"
            _save(network, folder, pixels, classes=classes, extra=extra)
            made = _upload(client, logged, name, folder, tags=tags, note=note)
            uri = f"{SCHEME}{name}/{made.version}"
            try:
                return uri, compare(
                    mlflow.pyfunc.load_model(str(_download(uri, logged.uri))).predict
                )
            except Exception:
                client.delete_model_version(name, made.version)
                raise
    except MlflowException as error:
        raise unreachable(logged.uri, error) from error


def _upload(
    client: MlflowClient,
    logged: Logged,
    name: str,
    folder: Path,
    *,
    tags: Mapping[str, str],
    note: str,
) -> Any:
    """A new version of the registered model, from a model folder; it belongs to the retraining's run."""
    model = client.create_logged_model(
        logged.experiment_id, name=re.sub(r"\W", "_", name), source_run_id=logged.run_id
    )
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    _ensure(client, name)
    return client.create_model_version(
        name, f"{SCHEME}{model.model_id}", logged.run_id, tags=dict(tags), description=note,
        model_id=model.model_id,
    )  # fmt: skip


def fetch(uri: str, tracking_uri: str) -> Path:
    """The folder of a registered model, downloaded where it is not on this machine.

    Raises UserError where there is no such model, ResourceError where the store does not answer.
    """
    try:
        with _speaking_to(tracking_uri):
            return _download(uri, tracking_uri)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"no model {uri}: {error.message}") from None
        raise unreachable(tracking_uri, error) from error


def _download(uri: str, store: str) -> Path:
    return Path(
        mlflow.artifacts.download_artifacts(
            artifact_uri=uri, tracking_uri=store, registry_uri=store
        )
    )


def _save(
    network: Any, folder: Path, pixels: np.ndarray, *, classes: int, extra: Sequence[Path]
) -> None:
    """An MLflow model folder: program, signature, input example, `extra` files."""
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, *pixels.shape[1:]))])
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, classes))])
    mlflow.pytorch.save_model(
        network,
        str(folder),
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        input_example=pixels,
        serialization_format="pt2",
        pip_requirements=[f"{name}=={version(name)}" for name in ("torch", "mlflow", "numpy")],
        extra_files=[path.resolve().as_uri() for path in extra],
    )


def _ensure(client: MlflowClient, name: str) -> None:
    """Make the registered model where it is new."""
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow and torch.export say about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _speaking_to(uri: str) -> Iterator[MlflowClient]:
    """A client of one store. A sqlite registry looks logged models up in MLflow's global store, whatever
    its client was told: so that is set meanwhile, and nothing is said."""
    before = mlflow.get_tracking_uri() if mlflow.tracking.is_tracking_uri_set() else ""
    try:
        with _quiet():
            mlflow.set_tracking_uri(uri)
            yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    finally:
        mlflow.set_tracking_uri(before)
