"""benchmarks/random_kills.py on a small scale: its log can be followed, and its rule holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "random_kills.py"


def killed(tmp_path: Path, *flags: str) -> tuple[str, dict[str, Any]]:
    """What the script prints, and its JSON."""
    file = tmp_path / "kills.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--json", str(file), *flags],
        capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.kills
def test_an_mlflow_server_that_is_killed_in_mid_search_has_every_run_once_in_the_end(
    tmp_path: Path,
) -> None:
    said, found = killed(tmp_path, "--kills", "2", "--what", "server")
    assert [kill["what"] for kill in found["kills"]] == ["server"] * 2
    assert any(kill["then"] == "answers again" for kill in found["kills"])
    assert "MLflow says what the ledger says" in said


@pytest.mark.slow
@pytest.mark.kills
def test_a_driver_that_dies_at_the_worst_moments_loses_nothing(tmp_path: Path) -> None:
    said, found = killed(tmp_path, "--kills", "4", "--what", "append,mirror,resume,verdict")
    wheres = {kill["what"]: kill["where"] for kill in found["kills"]}
    assert set(wheres) == {"append", "mirror", "resume", "verdict"}
    assert "in the middle of writing" in wheres["append"]
    assert "before the verdict was written; 104 of 104 done" in wheres["verdict"]
    assert all(k["then"].startswith(("went on with", "wrote the verdict")) for k in found["kills"])
    assert said.count("->") == 1 + 4  # the heading, and a line for each


def test_what_cannot_be_killed_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--what", "drivers"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--what: drivers is none of driver, append, resume" in done.stderr
