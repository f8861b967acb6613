"""The fault table, faults.toml: every row has tests that prove it, they exist, docs/faults.md says which.

python tests/test_faults.py        writes docs/faults.md anew
"""

from __future__ import annotations

import ast
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "faults.md"
ROWS: dict[int, dict[str, Any]] = {
    int(number): row for number, row in tomllib.loads((TESTS / "faults.toml").read_text()).items()
}

HEAD = """# What can go wrong, and which test shows that nothing is lost

After every fault: each planned training has one result, each twin is trained once, each figure is in
MLflow once, MLflow says what the ledger says. The ledger (`results/NAME/ledger.jsonl`) is the only state;
everything else is made from it, so the same command goes on from any moment.

Written by `python tests/test_faults.py`; a test fails where it is out of date. Tests marked `kills` or
`slow` start and kill real processes: `pytest -m kills`, `pytest -m slow`. `benchmarks/random_kills.py`
kills search, trainings and MLflow server, by chance and at the worst moments (half a record written, while it
resumes, between two calls to MLflow, before the verdict), and compares every table with an undisturbed run.
`benchmarks/invariant.py` is the rule above; all of them check it.

Time limits are yours to set: without `resources.time_limit_s` nobody can tell a slow training from one
that hangs.

| # | what happens | what is expected | shown by |
| --- | --- | --- | --- |
"""


@lru_cache
def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def page() -> str:
    lines = [
        f"| {number} | {row['fault']} | {row['expected']} | {'<br>'.join(map(_link, row['shown_by']))} |\n"
        for number, row in ROWS.items()
    ]
    return HEAD + "".join(lines)


def _link(proof: str) -> str:
    if "::" not in proof:
        return f"[{proof}](../{proof})"
    file, _, name = proof.partition("::")
    words = name.removeprefix("test_").replace("_", " ")
    return f"[{words}](../tests/{file})"


def test_the_table_has_all_thirty_rows() -> None:
    assert list(ROWS) == list(range(1, 31))


@pytest.mark.parametrize("number", ROWS)
def test_every_row_is_proved_by_tests_that_exist(number: int) -> None:
    tests = [p for p in ROWS[number]["shown_by"] if "::" in p]
    assert tests, f"row {number} has no test"
    missing = [p for p in tests if p.split("::")[1] not in functions(p.split("::")[0])]
    assert not missing, f"row {number}: renamed or gone? {missing}"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run `python tests/test_faults.py`"


if __name__ == "__main__":
    PAGE.write_text(page())
