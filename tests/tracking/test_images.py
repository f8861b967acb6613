"""Pictures of the memory in MLflow: those of the ledger, once each, whatever happens in between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from aim_tune.addons.pictures import MemoryPictures
from aim_tune.tracking import views
from aim_tune.tracking.content import BY_STEP, PHASES
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri
from aim_tune.tracking.store import Store

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20


@pytest.fixture
def pictured(records):
    """The ledger with pictures in the first confirm run of aim."""
    start = np.random.default_rng(0).normal(size=(16, 4, 4)).astype(np.float32)
    written = np.stack([start, 2 * start, -start, 0 * start])
    memory = MemoryPictures.of(start, start + 0.5, written, labels=[1, 2, 3, 4]).to_dict()
    for record in records:
        at = (record.get("position"), record.get("arm"))
        if record["event"] == "training_done" and at == ("block/0/confirm/0", "aim"):
            record["result"]["memory"] = memory
    return records


def found(folder: Path, condition: str):
    client = MlflowClient(tracking_uri=default_uri(folder.parent))
    experiment = client.get_experiment_by_name(f"aim_tune/{folder.name}")
    return client, client.search_runs([experiment.experiment_id], condition)


def images(folder: Path) -> Counter:
    """(key, step) of each full-size picture."""
    client, (run,) = found(folder, "tags.`mlflow.loggedImages` = 'True'")
    assert run.info.run_name == "aim block/0/confirm/0"
    names = [
        Path(file.path).stem.split("+") for file in client.list_artifacts(run.info.run_id, "images")
    ]
    return Counter((n[0].replace("~", "/"), int(n[2])) for n in names if n[-1] != "compressed")


def test_before_after_written_and_by_step_are_there_once_each(folder, study, pictured, mirrored):
    mirrored(pictured)
    last = study.recipe.steps
    wanted = {(BY_STEP, 0), (BY_STEP, last), *((key, 0) for key in PHASES.values())}
    assert images(folder) == dict.fromkeys(wanted, 1)
    mirrored(pictured)
    assert images(folder) == dict.fromkeys(wanted, 1)


def test_a_search_killed_among_the_pictures_adds_only_those_that_lack(
    folder, study, pictured, monkeypatch, mirrored
):
    real, calls = MlflowClient.log_image, []

    def log_image(self, *args, **kwargs):
        calls.append(kwargs["key"])
        if len(calls) == 3:
            raise OSError("killed")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_image", log_image)
    monkeypatch.setattr("aim_tune.tracking.mirror.LONGEST_PAUSE_S", 0.0)
    mirror = Mirror(folder=folder, study=study, notify=lambda text: None, make_store=Store)
    mirror.start()
    for record in pictured:
        mirror.event(record)
    mirror.close()
    mirrored(pictured)
    assert set(images(folder).values()) == {1}
    assert len(images(folder)) == len(PHASES) + 2


def test_a_damaged_record_costs_its_pictures_alone(folder, pictured, mirrored):
    for record in pictured:
        if record["event"] == "training_done" and record["result"].get("memory"):
            record["result"]["memory"]["shape"] = [9, 9, 9, 9]
    mirrored(pictured)
    assert found(folder, "tags.`mlflow.loggedImages` = 'True'")[1] == []
    assert len(found(folder, "")[1]) == 18


def test_the_view_shows_each_picture_and_no_other_view_does(study):
    kinds = {view.key: view for view in views.views(study)}
    shown = [c["imageKeys"] for c in kinds["aim_memory"].charts]
    assert sorted(key for (key,) in shown) == sorted([BY_STEP, *PHASES.values()])
    for view in kinds.values():
        drawn = [c for c in views._cards(view) if c["type"] == "IMAGE" and not c["deleted"]]
        assert bool(drawn) == (view.key == "aim_memory")


def test_the_verdict_s_note_and_the_experiment_s_show_its_picture(folder, pictured, mirrored):
    mirrored(pictured[:40], picture=PNG)
    client, (run,) = found(folder, "tags.`aim.phase` = 'verdict'")
    assert "verdict.png" in {file.path for file in client.list_artifacts(run.info.run_id)}
    link = f"![The verdict](get-artifact?path=verdict.png&run_uuid={run.info.run_id})"
    assert link in run.data.tags["mlflow.note.content"]
    experiment = client.get_experiment(run.info.experiment_id)
    assert link in experiment.tags["mlflow.note.content"]
    mirrored(pictured[:40], picture=PNG)
    _, (again,) = found(folder, "tags.`aim.phase` = 'verdict'")
    assert again.info.run_id == run.info.run_id
    assert link in again.data.tags["mlflow.note.content"]
