"""The shipped studies load against the house tables, say what they are, and the plug-in works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aim_tune.spec import Study, dump, load_study
from aim_tune.tables import HOUSE

FOLDER = Path(__file__).resolve().parents[2] / "search_spaces"
STUDIES = sorted(FOLDER.glob("*.yaml"))


def load(name: str) -> Study:
    return load_study(FOLDER / f"{name}.yaml", HOUSE)[0]


def test_the_studies_are_there() -> None:
    assert [p.stem for p in STUDIES] == [
        "aim_image_folder", "aim_mlp_mnist", "aim_resnet20_cifar10", "digits_lr_fixed", "digits_lr_tuned",
        "plugin_example", "published_resnet50_dogs", "quickstart",
    ]  # fmt: skip


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_loads_and_comes_back_from_its_resolved_form(path: Path, tmp_path: Path) -> None:
    study = load_study(path, HOUSE)[0]
    assert study.name == path.stem
    assert study.compares
    resolved = tmp_path / "study.yaml"
    resolved.write_text(dump(study.to_dict()))
    assert load_study(resolved, HOUSE)[0] == study


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_opens_by_saying_what_it_asks_and_takes_and_how_to_run_it(path: Path) -> None:
    comments = re.match(r"(#.*\n)+", path.read_text())
    assert comments is not None
    opening = comments.group()
    assert re.findall(r"^# (Asks|Takes|Run):", opening, re.MULTILINE) == ["Asks", "Takes", "Run"]
    assert f"python -m aim_tune.search search_spaces/{path.name}" in opening
    study = load_study(path, HOUSE)[0]
    planned = study.requests_planned * len(study.arms)
    assert f"({planned} trainings" in opening, f"{planned} trainings are planned"


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_the_options_named_in_the_opening_are_taken(path: Path) -> None:
    opening = path.read_text().split("\nname:")[0]
    options = [a or b for a, b in re.findall(r'--set (?:"([^"]+)"|([^\s,)]+))', opening)]
    load_study(path, HOUSE, [o for o in options if "FOLDER" not in o])


def test_the_quick_start_is_the_one_of_the_readme() -> None:
    study = load("quickstart")
    assert study.backbone.name == "resnet8"
    assert study.data.name == "digits"
    assert study.requests_planned * 3 == 114
    assert (study.protocol.blocks, study.resources.gpu) == (6, 0)


def test_validation_of_the_quick_start_imports_nothing_heavy() -> None:
    code = f"""
import sys
from pathlib import Path
from aim_tune.spec import load_study
from aim_tune.tables import HOUSE
load_study(Path({str(FOLDER / "quickstart.yaml")!r}), HOUSE)
print(sorted({{"torch", "torchvision", "ray", "mlflow", "optuna", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_plugin_is_short() -> None:
    assert len((FOLDER / "plugins" / "my_lab.py").read_text().splitlines()) < 60


def test_the_example_plugin_gives_a_network_data_and_an_addon_that_work() -> None:
    import torch

    study, catalog = load_study(FOLDER / "plugin_example.yaml", HOUSE)
    stripes = catalog.data["stripes"].load()
    train, labels, test, test_labels = stripes(side=12, noise_sd=0.0)
    assert (train.shape, test.shape) == ((800, 1, 12, 12), (400, 1, 12, 12))
    assert set(labels) == set(test_labels) == {0, 1, 2, 3}
    assert np.ptp(train[labels == 0][0], axis=-1).max() < 1e-6  # no change along a row
    assert np.array_equal(stripes(side=12, noise_sd=1.0)[0], stripes(side=12, noise_sd=1.0)[0])

    backbone = catalog.backbones["two_convs"].load()
    net = backbone(classes=4, image_shape=(1, 12, 12), **study.backbone.settings).eval()
    images = torch.from_numpy(test[:5])
    expected = net(images)
    assert expected.shape == (5, 4)

    build = catalog.addons["offset"].load()
    arms = {
        arm: build(net, arm=arm, image_shape=(1, 12, 12), seed=3, scale=0.5)
        for arm in study.addon_arms
    }
    pictures = {arm: model.picture for arm, model in arms.items()}
    assert torch.equal(pictures["offset"], pictures["frozen_offset"])
    assert [p.requires_grad for p in pictures.values()] == [True, False]
    shifted = arms["offset"](images - pictures["offset"])
    torch.testing.assert_close(shifted, expected)
