"""Real trainings on every engine: the same study gives the same points, scores and weights, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aim_tune.data.sealed import test_labels as sealed_labels
from aim_tune.engine import in_process
from aim_tune.engine.conductor import Conductor
from aim_tune.protocol import Machine
from aim_tune.spec import Study, load_study
from aim_tune.tables import HOUSE

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
recipe: {steps: 4, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 2, lag: 1}, blocks: 2, twins: 2, confirm: 1}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(TEXT)
    return load_study(file, HOUSE)[0]


def bits(study: Study, engine: Any, slots: int, store: Path, ledger: Any) -> dict[Any, Any]:
    labels = sealed_labels(study.data, HOUSE)
    conductor = Conductor(study, Machine(study), ledger, labels)
    with engine.opened(study, slots=slots) as opened:
        opened.run(conductor, study, str(store))
    assert {t.status for t in ledger.history.trainings.values()} == {"ok"}
    return {
        key: (t.point.to_dict(), t.score, t.test_accuracy, t.result.weights_sha256)
        for key, t in ledger.history.trainings.items()
    }


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """What the first case found; the others must equal it."""
    return {}


@pytest.mark.parametrize(
    ("slots", "pack"), [(0, "twin"), (0, "arm"), (1, "twin"), (2, "twin"), (2, "arm")]
)
def test_engine_slots_and_packing_change_no_bit(
    slots: int,
    pack: str,
    study: Study,
    expected: dict[str, Any],
    lab: Any,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    study = replace(study, resources=replace(study.resources, pack=pack))
    engine: Any = in_process
    if slots:
        request.getfixturevalue("ray_session")
        from aim_tune.engine import ray_tune as engine
    found = bits(study, engine, slots or 1, tmp_path, lab.Ledger())
    assert len(found) == 3 * study.requests_planned
    assert found == expected.setdefault("bits", found)
