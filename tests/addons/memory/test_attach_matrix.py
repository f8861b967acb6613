"""The page of what a memory can be attached to has the rows and columns of its script, and no failure."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "attach_matrix.md"
STATED = {"not applicable: the network without a memory takes one image size only"}
"""The reasons for a cell that is not `yes` that a reader may accept."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "attach_matrix", ROOT / "benchmarks" / "attach_matrix.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attach_matrix"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_network_and_check_of_the_script_is_on_the_page_without_a_failure(
    script: ModuleType,
) -> None:
    rows = script.kept_rows(PAGE)
    assert set(rows) == set(script.NETS)
    assert len([n for n in rows if not n.startswith(("timm_", "torch_"))]) >= 18
    for name, row in rows.items():
        assert list(row) == [*script.FACTS, *script.CHECKS], name
        assert {row[check] for check in script.CHECKS} <= {"yes", *STATED}, name
        assert int(row["readers"]) > 0


def test_the_page_says_what_each_check_is(script: ModuleType) -> None:
    text = PAGE.read_text()
    for name, (_, meaning) in script.CHECKS.items():
        assert f"- **{name}**: {meaning}" in text


def test_a_page_comes_back_as_it_was_written(script: ModuleType, tmp_path: Path) -> None:
    facts = dict(zip(script.FACTS, ["64", "9", "2", "+1.0 %"], strict=True))
    rows = {
        "resnet18": {**facts, "start": "yes", "onnx": "fails: Error: no"},
        "mlp": {**facts, "start": "yes"},
    }
    page = tmp_path / "page.md"
    page.write_text(script.table(rows, ["start", "onnx"]))
    rows["mlp"]["onnx"] = "not checked"
    assert script.kept_rows(page) == rows
    assert script.kept_rows(tmp_path / "none.md") == {}
