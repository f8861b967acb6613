"""The page of what a memory can be attached to is complete and names no failure."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "attach_matrix.md"
SCRIPT = PAGE.parents[1] / "benchmarks" / "attach_matrix.py"


def test_every_network_and_check_of_the_script_is_on_the_page_without_a_failure() -> None:
    source, page = SCRIPT.read_text(), PAGE.read_text()
    nets = re.findall(r'"(\w+)"', source.split("NETS = (")[1].split(")")[0])
    rows = re.findall(r"^\| (\w+) \| \d+ \|(.*)\|$", page, re.MULTILINE)
    assert len(nets) >= 17
    assert [name for name, _ in rows] == sorted(nets)
    assert "fails" not in page
    for name, cells in rows:
        outcomes = [c.strip() for c in cells.split("|")][3:]
        assert len(outcomes) == 11, name
        assert set(outcomes) <= {"yes", "(1)"}, name
    assert page.count("not applicable: the network without a memory takes one image size only") == 1
