"""What makes two searches the same, beyond what a study file shows at once: plug-ins, overrides, threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aim_tune.engine.resume import declaration
from aim_tune.engine.warm_start import warm_started
from aim_tune.errors import UserError
from aim_tune.ledger import Ledger
from aim_tune.spec.request import Point, Request
from aim_tune.spec.study import Plugin, Study
from aim_tune.stats.simulate import example_study

INFO: Any = SimpleNamespace(digest="d1ce")
LAB = Plugin(path="lab.py", sha256="aa", source="")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An earlier study with a plug-in and an override, and one finished trial."""
    study = study_of()
    point = Point(shared={"lr": 0.01})
    request = Request(
        position="explore/0", arms=dict.fromkeys(study.explore_arms, point), streams={}
    )
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append(declaration(study, INFO))
        ledger.append({"event": "asked", "position": "explore/0", "request": request.to_dict()})
        for arm in request.arms:
            result = {"arm": arm, "status": "ok", "val_accuracy": 0.5}
            where = {"position": "explore/0", "arm": arm, "attempt": 1}
            ledger.append({"event": "training_done", **where, "result": result})
        ledger.append({"event": "request_done", "position": "explore/0", "test": {}})
    return tmp_path


def study_of(**changes: Any) -> Study:
    study = replace(example_study(explore=4), plugins=(LAB,), overrides={"aim": {"lr": 0.1}})
    return replace(study, **changes)


def after(folder: Path, study: Study) -> Study:
    explore = replace(study.protocol.explore, warm_start=str(folder))
    return replace(study, protocol=replace(study.protocol, explore=explore))


def test_the_same_search_comes_over(folder: Path) -> None:
    study = study_of()
    other = replace(study.resources, cpu=4, pack="arm")
    for same in (study, replace(study, name="renamed"), replace(study, resources=other)):
        found, earlier = warm_started(after(folder, same), INFO)
        assert earlier is not None
        assert found.protocol.explore.warm_start == earlier.start
        assert [t.position for t in earlier.trials] == ["explore/0"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"plugins": (replace(LAB, sha256="bb"),)}, "plugins.lab.py: aa there, bb here"),
        ({"plugins": ()}, r"plugins.lab.py: aa there, \(not there\) here"),
        ({"overrides": {"aim": {"lr": 0.2}}}, "overrides.aim.lr: 0.1 there, 0.2 here"),
        ({"overrides": {}}, r"overrides.aim.lr: 0.1 there, \(not there\) here"),
    ],
)
def test_another_plug_in_or_override_is_another_search(
    folder: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(UserError, match=text):
        warm_started(after(folder, study_of(**changes)), INFO)


def test_a_study_without_a_warm_start_is_as_it_is() -> None:
    study = study_of()
    assert warm_started(study, INFO) == (study, None)


def test_a_folder_that_cannot_be_read_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("aim_tune.engine.warm_start.read_history", refused)
    with pytest.raises(UserError, match=r"no study can be read in .* \(Permission denied\)"):
        warm_started(after(folder, study_of()), INFO)
