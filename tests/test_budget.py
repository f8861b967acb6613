"""A study with a budget of device hours: sizes are chosen when it begins, written down, kept on resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aim_tune import planning
from aim_tune.errors import ResumeError
from aim_tune.launch import How, run_study
from aim_tune.planning import show_plan
from aim_tune.reporting.terminal import Console
from aim_tune.spec import load_study
from aim_tune.tables import HOUSE

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [baseline, aim, frozen, time_matched, step_matched]
recipe: {steps: 4, batch_size: 8, evaluations: 1}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 4}
protocol: {budget_gpu_hours: 1.0, twins: 2, confirm: 1}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIM_TUNE_REGISTRY", str(tmp_path / "registry.jsonl"))
    path = tmp_path / "study.yaml"
    path.write_text(TEXT)
    return path


def an_hour_each(study: Any, arm: str, info: Any) -> planning._Cost:
    """1/45 of an hour a training: blocks of 15 cost a third of one."""
    return planning._Cost(
        arm=arm, parameters=1, trainable=1, flops=1, step_ms=1.0,
        seconds={"baseline": 60.0, "frozen": 60.0, "aim": 90.0}.get(arm, 1.0),
    )  # fmt: skip


def test_sizes_are_chosen_once_declared_and_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_trial_run", an_hour_each)
    how = How(out=tmp_path / "results", engine="in_process", tracking="off")
    set_arms = ["arms=[baseline, aim, frozen]", "protocol.budget_gpu_hours=0.4"]
    study, catalog = load_study(file, HOUSE, set_arms)
    outcome = run_study(study, catalog, how)
    assert outcome.history.declared is not None
    declared = outcome.history.declared["study"]["protocol"]
    assert (declared["blocks"], declared["budget_gpu_hours"]) == (2, 0.4)  # 2 x 210 s x 3 <= 1440 s
    assert "blocks: 2" in (outcome.folder / "study.yaml").read_text()
    assert (outcome.verdict.blocks, outcome.status) == (2, "complete")

    def never(*args: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(planning, "_trial_run", never)
    again = run_study(study, catalog, how)
    assert again.history.events == outcome.history.events
    other = load_study(file, HOUSE, [*set_arms[:1], "protocol.budget_gpu_hours=0.8"])
    with pytest.raises(ResumeError, match=r"protocol\.budget_gpu_hours: 0\.4 then, 0\.8 now"):
        run_study(*other, how)


def test_a_dry_run_says_what_the_budget_pays_for_and_prices_matched_arms_as_aim(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "_trial_run", an_hour_each)
    study, catalog = load_study(file, HOUSE)
    from aim_tune.launch import look

    show_plan(study, look(study, catalog), Console(highlight=False, width=200), effect=0.01)
    said = capsys.readouterr().out
    # 60 + 60 + 3 x 90 s a training of each arm, 3 of them a block: 1170 s
    assert (
        "budget       1 core hours: 3 blocks of 2 twins and 1 confirm pair take about 0.975" in said
    )
    assert (
        "80 % takes more than 200 blocks: not within reach; the smallest difference that 200"
        in said
    )


def test_every_kind_of_arm_can_be_timed(file: Path) -> None:
    from aim_tune.launch import look

    study, catalog = load_study(file, HOUSE)
    info = look(study, catalog)
    for arm in study.arms:
        cost = planning._trial_run(study, arm, info)
        assert cost.seconds > 0, arm
        assert cost.parameters > 0, arm
