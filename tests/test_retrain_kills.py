"""A retraining that is killed goes on from its checkpoint and ends with the very same network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aim_tune import export

pytestmark = [pytest.mark.kills, pytest.mark.slow]


@pytest.fixture
def config(tiny_results, tmp_path) -> Path:
    assert export.main([str(tiny_results), "--arm", "aim", "-o", str(tmp_path / "best.yaml")]) == 0
    return tmp_path / "best.yaml"


def start(config: Path, out: Path) -> subprocess.Popen:
    options = [
        "--steps",
        "3000",
        "--set",
        "resources.checkpoint_s=0.2",
        "--set",
        "recipe.evaluations=50",
    ]
    command = [sys.executable, "-m", "aim_tune.retrain", str(config), "--out", str(out), *options,
               "--forms", "weights", "--tracking", "off"]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until_saved(process: subprocess.Popen, out: Path) -> None:
    """Wait for a checkpoint of this process."""
    before = set(out.rglob("*.ckpt"))
    for _ in range(1200):
        if set(out.rglob("*.ckpt")) - before:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no checkpoint within two minutes")


def test_killed_twice_and_interrupted_it_ends_with_the_same_bits(config, tmp_path):
    whole = start(config, tmp_path / "whole")
    assert whole.wait(600) == 0
    out = tmp_path / "out"
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = start(config, out)
        until_saved(process, out)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code
        if number == signal.SIGINT:
            assert "the same command goes on from the last checkpoint" in error
        assert not (out / "metrics.json").exists()
    last = start(config, out)
    assert last.wait(600) == 0
    one, two = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path / "whole", out))
    assert "resumed at step" in two["result"]["detail"]
    assert two["result"]["weights_sha256"] == one["result"]["weights_sha256"]
    assert [m["val_accuracy"] for m in two["curve"]] == [m["val_accuracy"] for m in one["curve"]]
    assert not list(out.rglob("*.ckpt"))
