"""A sqlite store whose schema is made once for all tests, and a small simulated study as a ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aim_tune.spec.study import Study
from aim_tune.stats.simulate import World, example_study, simulated_events
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri
from aim_tune.tracking.store import Store

Records = list[dict[str, Any]]
VERDICT = {"verdict": "no_evidence", "effect_points": 0.25}


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlflow.db with a schema and nothing in it (making one takes seconds)."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(default_uri(folder))
    store.open("aim_tune/unused", "")
    store.close()
    return folder / "mlflow.db"


@pytest.fixture
def study() -> Study:
    """Two blocks of two twins and one confirm pair, three arms: 18 trainings."""
    return example_study(blocks=2, twins=2, confirm=1)


@pytest.fixture
def records(study: Study) -> Records:
    """Its whole ledger."""
    return list(
        simulated_events(study, World(effects={"aim": 1.0, "frozen": 0.0}, test_examples=50).play)
    )


@pytest.fixture
def folder(tmp_path: Path, study: Study, empty_store: Path) -> Path:
    """results/NAME, with a store beside it."""
    folder = tmp_path / "results" / study.name
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder.parent / "mlflow.db")
    return folder


@pytest.fixture
def write_ledger(folder: Path) -> Callable[[Records], None]:
    def write(records: Records) -> None:
        lines = [json.dumps(r, default=float) + "\n" for r in records]
        (folder / "ledger.jsonl").write_text("".join(lines))

    return write


@pytest.fixture
def opened(folder: Path, study: Study) -> Iterator[Store]:
    """A second look at the same store, as a user's notebook has."""
    store = Store(default_uri(folder.parent))
    store.open(f"aim_tune/{study.name}", "")
    yield store
    store.close()


@pytest.fixture
def mirrored(folder: Path, study: Study) -> Callable[..., Mirror]:
    """A mirror that has written these records, and is closed; with MLflow in this process, which is quicker.

    With a picture, a verdict as well.
    """

    def run(records: Records, *, make_store: Any = Store, picture: bytes | None = None) -> Mirror:
        mirror = Mirror(folder=folder, study=study, make_store=make_store)
        mirror.start()
        for record in records:
            mirror.event(record)
        if picture:
            mirror.finish(VERDICT, "Nothing was seen.", picture=picture)
        assert mirror.close() == ""
        return mirror

    return run
