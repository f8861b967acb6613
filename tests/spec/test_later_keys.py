"""Keys that came after the first version: at their default they change no study's hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import Study, load_study
from aim_tune.tables import HOUSE

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
recipe: {steps: 6, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 4}
protocol: {blocks: 2, twins: 2, confirm: 1}
"""
HASH = "626142e98bc1585c"
"""Of this study before there were init, update_every and early stopping."""


def study_of(tmp_path: Path, *overrides: str) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT)
    return load_study(file, HOUSE, overrides)[0]


def test_a_study_of_the_first_version_keeps_its_hash(tmp_path: Path) -> None:
    assert study_of(tmp_path).study_hash == HASH


@pytest.mark.parametrize(
    "override",
    [
        "addon.init=normal", "addon.update_every=2", "recipe.early_stopping_patience=7",
        "recipe.early_stopping_min_delta=0.001", "addon.readers=[stage1.0.conv1]",
        "recipe.compile=true",
    ],
)  # fmt: skip
def test_another_value_is_another_question_and_comes_back_from_a_file(
    tmp_path: Path, override: str
) -> None:
    study = study_of(tmp_path, override)
    assert study.study_hash != HASH
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


def test_readers_may_be_names_or_a_choice_of_them(tmp_path: Path) -> None:
    study = study_of(tmp_path, "addon.readers={choice: [block, all, [stage1.0.conv1, fc]]}")
    assert study.addon is not None
    assert study.addon.space["readers"].options == ("block", "all", ["stage1.0.conv1", "fc"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("blok", "unknown readers 'blok'; did you mean 'block'"),
        ("[fc, fc]", "names one thing twice"),
        ("[]", "expected one of .*, or a list of names, found"),
        ("[1]", "expected one of .*, or a list of names, found"),
    ],
)
def test_readers_that_are_neither_are_refused(tmp_path: Path, value: str, text: str) -> None:
    with pytest.raises(StudyError, match=text):
        study_of(tmp_path, f"addon.readers={value}")
