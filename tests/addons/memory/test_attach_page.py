"""docs/attach.md shows what is printed, and every setting, arm and preset."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from aim_tune.addons import ADDONS
from aim_tune.addons.memory import PRESETS, attach
from aim_tune.describe import main

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "attach.md").read_text()
SHOWN = re.findall(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)


def comparable(line: str) -> str:
    """Costs in FLOPs and bytes may change with torch and with how reads are computed."""
    return re.sub(r"[\d,.+-]+", "#", line) if re.match(r"FLOPs|bytes", line) else line


def assert_shown(shown: str, printed: str) -> None:
    lines = [comparable(line) for line in printed.splitlines()]
    for line in shown.splitlines():
        assert line.strip() == "..." or comparable(line) in lines, line


def test_the_report_shown_is_the_report_printed() -> None:
    model, x = resnet18(num_classes=10), torch.zeros(1, 3, 64, 64)
    assert_shown(SHOWN[0], str(attach(model, memory_shape=(2, 2, 64), example_input=x)[1]))


def test_the_plan_shown_is_the_plan_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resnet50", "--preset", "published"]) == 0
    assert_shown(SHOWN[1], capsys.readouterr().out)


def test_every_setting_arm_and_preset_is_explained() -> None:
    settings = set(inspect.signature(attach).parameters) - {"model", "example_input"}
    for name in [*settings, *ADDONS["memory"].arms, *PRESETS]:
        assert f"`{name}" in PAGE, name
    for name, setting in ADDONS["memory"].settings.items():
        for option in setting.options if setting.kind == "str" and setting.options else ():
            row = re.search(rf"^\| `{name}` \| (.*?) \|", PAGE, re.MULTILINE)
            assert row is not None, name
            assert f"`{option}`" in row.group(1), (name, option)
