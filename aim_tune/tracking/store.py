"""The one file that speaks to MLflow: opens a store, finds runs by key, writes what they lack.

MlflowClient only; the fluent API keeps global state and needs a call per epoch. One run costs one
create, one batch and one end (50 to 80 ms on sqlite). Everything here blocks and raises: patience,
retries and threads are the mirror's business.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from aim_tune.errors import ResourceError
from aim_tune.spec.values import short_hash
from aim_tune.tracking.content import (
    DIGEST_TAG,
    KEY_TAG,
    NOTE_TAG,
    STUDY_TAG,
    DataInput,
    RunContent,
    Seen,
)
from aim_tune.tracking.notes import PICTURE, RUN_ID
from aim_tune.tracking.place import (
    first_use_lock,
    is_server,
    probe,
    server_version,
    unreachable,
    with_driver,
    write_ahead,
)

FILES_TAG = "aim_tune.files"
"""Hash of the artifacts of a run, set once all of them are there."""
IMAGES_TAG = "mlflow.loggedImages"
"""Set by MLflow on a run that has pictures."""
BATCH = 1000
"""Most metrics MLflow takes in one call."""


class Store:
    """One experiment of one MLflow store. `open` it before the first call.

    store = Store("sqlite:////home/me/results/mlflow.db", artifacts=Path("results/mlartifacts"))
    """

    def __init__(self, uri: str, *, artifacts: Path | None = None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._client: MlflowClient | None = None
        self._experiment = ""

    @property
    def client(self) -> MlflowClient:
        """The client of an open store."""
        assert self._client is not None, "open the store first"
        return self._client

    def open(
        self,
        experiment: str,
        note: str,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect; make the schema and the experiment where they are missing.

        `on_answer` is called once it is known that somebody is there. Raises ResourceError naming
        the URI where the store cannot be opened.
        """
        if not hasattr(mlflow, "__version__"):  # a folder called mlflow is on the path instead
            raise ResourceError("MLflow is not installed; run `pip install mlflow`")
        probe(self.uri)
        on_answer()
        try:
            with _quiet(), first_use_lock(self.uri):
                self._client = MlflowClient(tracking_uri=with_driver(self.uri))
                self._experiment = self._find_or_make(experiment)
                if self._artifacts is not None:  # the store of a results folder is ours
                    write_ahead(self.uri)
            self.describe(note)
        except Exception as error:  # of MLflow, SQLAlchemy, a missing driver...
            raise unreachable(self.uri, error) from error

    def close(self) -> None:
        """Let go of the client."""
        self._client = None

    def describe(self, note: str) -> None:
        """Set the experiment's description."""
        self.client.set_experiment_tag(self._experiment, NOTE_TAG, note)

    @property
    def experiment_id(self) -> str:
        """The experiment of an open store."""
        assert self._experiment, "open the store first"
        return self._experiment

    def version(self) -> str:
        """Version of the MLflow that shows the store: the server's, else the one installed here."""
        return server_version(self.uri) if is_server(self.uri) else str(mlflow.__version__)

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        """Set tags of the experiment, leaving alone those that are so already."""
        there = self.client.get_experiment(self._experiment).tags
        for key, value in tags.items():
            if there.get(key) != value:
                self.client.set_experiment_tag(self._experiment, key, value)

    def runs(self, study_hash: str) -> dict[str, Seen]:
        """Key -> run, for all runs of a study (1 ms each). Of two runs with one key the younger is
        deleted. Raises ResourceError."""
        try:
            return self._all(study_hash)
        except Exception as error:
            raise unreachable(self.uri, error) from error

    def _all(self, study_hash: str) -> dict[str, Seen]:
        found: dict[str, Seen] = {}
        for run in self._search(f"tags.`{STUDY_TAG}` = '{study_hash}'"):
            key = run.data.tags.get(KEY_TAG, "")
            if key in found:  # made twice: the answer to a create call was lost
                self.client.delete_run(run.info.run_id)
            elif key:
                found[key] = _seen(run)
        return found

    def find(self, key: str) -> Seen | None:
        """The run of a key, with all steps it holds."""
        run = next(self._search(f"tags.`{KEY_TAG}` = '{key}'"), None)
        if run is None:
            return None
        seen = _seen(run)
        for metric in run.data.metrics:
            history = self.client.get_metric_history(seen.run_id, metric)
            seen.steps.update((metric, entry.step) for entry in history)
        return seen

    def write(self, content: RunContent, seen: Seen | None) -> Seen:
        """Bring a run up to `content`, adding only what it lacks. Metrics are never changed."""
        if seen is None:
            seen = self._create(content)
        self._log_images(content, seen)
        self._log_difference(content, seen)
        if content.data is not None and not seen.has_data:
            self.client.log_inputs(seen.run_id, datasets=[_dataset(content.data)])
            seen.has_data = True
        if content.status != seen.status:
            if content.status == "RUNNING":
                self.client.update_run(seen.run_id, status="RUNNING")
            else:
                self.client.set_terminated(seen.run_id, content.status, content.end_ms)
            seen.status = content.status
        return seen

    def is_newest(self, seen: Seen) -> bool:
        """Whether no run of the experiment has started after this one."""
        newest = self.client.search_runs(
            [self._experiment], max_results=1, order_by=["attributes.start_time DESC"]
        )
        return bool(newest) and newest[0].info.run_id == seen.run_id

    def attach(self, seen: Seen, files: Sequence[Path], picture: bytes | None = None) -> None:
        """Copy files to the run's artifacts, unless the same ones are there; missing ones are left out.

        `picture` is a PNG that the run's note shows.
        """
        there = [file for file in files if file.is_file()]
        blobs = [file.read_bytes() for file in there] + ([picture] if picture else [])
        digest = short_hash([sha256(blob).hexdigest() for blob in blobs])
        if seen.tags.get(FILES_TAG) == digest:
            return
        for file in there:
            self.client.log_artifact(seen.run_id, str(file))
        if picture:
            with TemporaryDirectory() as folder:
                file = Path(folder) / PICTURE
                file.write_bytes(picture)
                self.client.log_artifact(seen.run_id, str(file))
        self.client.set_tag(seen.run_id, FILES_TAG, digest)

    def delete(self, seen: Seen) -> None:
        """Put a run into MLflow's waste bin."""
        self.client.delete_run(seen.run_id)

    def _find_or_make(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = self._artifacts.resolve().as_uri() if self._artifacts else None
            kind = {"mlflow.experimentKind": "custom_model_development"}
            return self.client.create_experiment(name, artifact_location=location, tags=kind)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _search(self, condition: str) -> Iterator[Run]:
        """Runs of the experiment, oldest first."""
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self._experiment],
                condition,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _create(self, content: RunContent) -> Seen:
        run = self.client.create_run(
            self._experiment,
            start_time=content.start_ms,
            tags={KEY_TAG: content.key, STUDY_TAG: content.tags.get(STUDY_TAG, "")},
            run_name=content.name,
        )
        return Seen(run_id=run.info.run_id, start_ms=content.start_ms)

    def _log_images(self, content: RunContent, seen: Seen) -> None:
        """Pictures that the run lacks. MLflow keeps them as files named key+step+...; each costs two."""
        if not content.images or seen.images >= {(i.key, i.step) for i in content.images}:
            return
        if IMAGES_TAG in seen.tags:
            files = self.client.list_artifacts(seen.run_id, "images")
            names = {"+".join(Path(file.path).name.split("+")[:3]) for file in files}
        else:
            names = set()
        for image in content.images:
            if f"{image.key.replace('/', '~')}+step+{image.step}" not in names:
                self.client.log_image(
                    seen.run_id,
                    image.pixels,
                    key=image.key,
                    step=image.step,
                    timestamp=content.end_ms or content.start_ms,
                    synchronous=True,
                )
            seen.images.add((image.key, image.step))
        seen.tags[IMAGES_TAG] = "True"

    def _log_difference(self, content: RunContent, seen: Seen) -> None:
        wanted = {**content.tags, DIGEST_TAG: content.digest}
        if NOTE_TAG in wanted:
            wanted[NOTE_TAG] = wanted[NOTE_TAG].replace(RUN_ID, seen.run_id)
        tags = {k: v for k, v in wanted.items() if seen.tags.get(k) != v}
        params = {k: v for k, v in content.params.items() if k not in seen.params}
        readings = [r for r in content.readings if (r.key, r.step) not in seen.steps]
        metrics = [Metric(r.key, r.value, r.time_ms, r.step) for r in readings]
        while len(metrics) > BATCH:
            self.client.log_batch(seen.run_id, metrics=metrics[:BATCH], synchronous=True)
            metrics = metrics[BATCH:]
        if metrics or params or tags:  # tags last, so that the digest stands for all of it
            self.client.log_batch(
                seen.run_id,
                metrics=metrics,
                params=[Param(k, v) for k, v in params.items()],
                tags=[RunTag(k, v) for k, v in tags.items()],
                synchronous=True,
            )
        seen.tags.update(tags)
        seen.params.update(params)
        seen.steps.update((r.key, r.step) for r in readings)


def _seen(run: Run) -> Seen:
    return Seen(
        run_id=run.info.run_id,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=set(run.data.params),
        has_data=bool(run.inputs and run.inputs.dataset_inputs),
        start_ms=run.info.start_time,
    )


def _dataset(data: DataInput) -> DatasetInput:
    dataset = Dataset(
        name=data.name,
        digest=data.digest,
        source_type="local",
        source=json.dumps({"name": data.name}),
        profile=data.settings,
    )
    return DatasetInput(dataset=dataset, tags=[InputTag("mlflow.data.context", data.context)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the 60 lines that the first migration logs."""
    loggers = [logging.getLogger(n) for n in ("alembic", "mlflow.store", "mlflow.tracking")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
