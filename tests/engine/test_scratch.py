"""Temporary folders: removed at the end, swept after a kill, never taken from a living process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aim_tune.engine.scratch import scratch, sweep


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_removed_at_the_end_and_after_an_error(own_folder: Path) -> None:
    with scratch() as folder:
        (folder / "x").touch()
        assert folder.parent == own_folder
    with pytest.raises(RuntimeError), scratch():
        raise RuntimeError
    assert list(own_folder.iterdir()) == []


def test_a_living_one_is_left_alone(own_folder: Path) -> None:
    with scratch() as one, scratch() as two:
        sweep()
        assert one.is_dir()
        assert two.is_dir()


def test_one_of_a_killed_process_is_swept(own_folder: Path) -> None:
    code = (
        "import os, signal\n"
        "from aim_tune.engine.scratch import scratch\n"
        "with scratch(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"TMPDIR": str(own_folder)}, check=False)
    assert len(list(own_folder.iterdir())) == 1
    sweep()
    assert list(own_folder.iterdir()) == []
