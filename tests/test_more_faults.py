"""Faults of the machine around a search: a disk that fills, a locked store, no network."""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aim_tune import search
from aim_tune.ledger import read_history

TEXT = """
name: tiny
backbone: {name: mlp}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
arms: [baseline, aim]
recipe: {steps: 4, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 4}
protocol: {explore: {trials: 0}, blocks: 2, twins: 2, confirm: 1}
"""
SEARCH = "import sys; from aim_tune.search import main; sys.exit(main(sys.argv[1:]))"
LOOPBACK = (
    # loopback is up, as on any machine without a network; nothing else is there
    "import fcntl, socket, struct;"
    "s = socket.socket();"
    "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x1 | 0x40));"
)
LONELY = LOOPBACK + SEARCH


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


def command(file: Path, out: str, code: str = SEARCH, *flags: str) -> list[str]:
    fixed = ["--out", str(file.parent / out), "--quiet"]
    return [sys.executable, "-c", code, str(file), *fixed, *flags]


def table(folder: Path) -> dict[Any, Any]:
    return {
        key: (t.score, t.test_accuracy, t.result and t.result.weights_sha256)
        for key, t in read_history(folder / "tiny" / "ledger.jsonl").trainings.items()
    }


def test_a_disk_that_fills_stops_the_search_with_the_reason_and_the_same_command_goes_on(
    file: Path, capsys: pytest.CaptureFixture[str], invariant: Any
) -> None:
    flags = ("--engine", "in_process", "--tracking", "off")
    assert search.main([str(file), "--out", str(file.parent / "whole"), *flags]) == 0
    size = (file.parent / "whole" / "tiny" / "ledger.jsonl").stat().st_size
    again = [str(file), "--out", str(file.parent / "full"), *flags]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 2 // 3, before[1]))
    try:
        assert search.main(again) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "ledger.jsonl: " in said
    assert "Nothing recorded so far is lost: make room and run the same command again" in said
    done = sum(score is not None for score, *_ in table(file.parent / "full").values())
    assert 0 < done < len(table(file.parent / "whole"))
    assert list((file.parent / "full" / "tiny").glob("*.tmp")) == []
    assert search.main(again) == 0
    assert table(file.parent / "full") == table(file.parent / "whole")
    invariant.check_folder(file.parent / "full" / "tiny")


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_store_that_is_locked_for_a_while_costs_a_search_nothing(
    seconds: float, file: Path, invariant: Any
) -> None:
    """Another program holds mlflow.db in mid-search (BEGIN EXCLUSIVE): every run is there at the end."""
    store = file.parent / "out" / "mlflow.db"
    held = threading.Event()

    def hold() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with sqlite3.connect(store, timeout=0.1) as base:
                    if base.execute("select count(*) from runs").fetchone()[0] >= 1:
                        base.execute("begin exclusive")
                        held.set()
                        time.sleep(seconds)
                        return
            except sqlite3.Error:
                pass
            time.sleep(0.02)

    thread = threading.Thread(target=hold)
    thread.start()
    assert search.main([str(file), "--out", str(store.parent), "--engine", "in_process"]) == 0
    thread.join()
    assert held.is_set()
    assert not thread.is_alive()
    with sqlite3.connect(store) as base:
        keys = [k for (k,) in base.execute("select value from tags where key = 'aim_tune.key'")]
    trainings = len(table(file.parent / "out"))
    assert len(keys) == len(set(keys)) == trainings + 1  # and the verdict
    invariant.check_folder(file.parent / "out" / "tiny", f"sqlite:///{store}")


def _alone() -> list[str]:
    """A command prefix that takes the network away, or a skip."""
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets no test take the network away (unshare --net)")
    return prefix


@pytest.mark.parametrize(
    "engine",
    ["in_process", pytest.param("ray", marks=[pytest.mark.kills, pytest.mark.slow])],
)
def test_without_a_network_a_search_runs_to_its_verdict(
    engine: str, file: Path, invariant: Any
) -> None:
    lonely = [*_alone(), *command(file, "out", LONELY, "--engine", engine)]
    done = subprocess.run(lonely, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    folder = file.parent / "out" / "tiny"
    assert json.loads((folder / "verdict.json").read_text())["blocks"] == 2
    assert (folder / "report.html").is_file()
    invariant.check_folder(folder, f"sqlite:///{file.parent / 'out' / 'mlflow.db'}")


def test_the_network_is_really_away(file: Path) -> None:
    """What the tests around this one rely on: only loopback, and nothing can be reached or looked up."""
    look = (
        "print([name for _, name in socket.if_nameindex()]);"
        "r = socket.socket(); r.settimeout(5); print(r.connect_ex(('192.0.2.1', 80)) != 0)"
    )
    lonely = [*_alone(), sys.executable, "-c", LOOPBACK + look]
    done = subprocess.run(lonely, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['lo']", "True"], done.stderr


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("{name: cifar10, root: DATA}", ["data_batch_1", "test_batch", "missing in DATA", "http"]),
        ("{name: mnist, root: DATA}", ["train-images-idx3-ubyte", "missing in DATA", "put"]),
        ("{name: image_folder, root: DATA}", ["DATA"]),
    ],
    ids=["cifar10", "mnist", "image_folder"],
)  # fmt: skip
def test_without_a_network_missing_data_are_named_with_where_to_put_them(
    data: str, named: list[str], file: Path
) -> None:
    """Nobody tries to fetch them: the message is there before anything starts."""
    place = file.parent / "data"
    place.mkdir()
    ours = data.replace("DATA", str(place))
    lines = [f"data: {ours}" if line.startswith("data:") else line for line in TEXT.splitlines()]
    file.write_text("\n".join(lines))
    lonely = [*_alone(), *command(file, "out", LONELY, "--engine", "in_process")]
    done = subprocess.run(lonely, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    for text in named:
        assert text.replace("DATA", str(place)) in done.stderr
    assert not (file.parent / "out" / "tiny" / "ledger.jsonl").exists()


FIRST_USE = """
import sys
from pathlib import Path
from aim_tune.spec import load_study
from aim_tune.tables import HOUSE
from aim_tune.tracking.mirror import Mirror
study, _ = load_study(Path(sys.argv[1]), HOUSE, [f"name=n{sys.argv[2]}"])
mirror = Mirror(folder=Path(sys.argv[1]).parent / "out" / study.name, study=study)
mirror.start()
assert mirror.close() == ""
"""


@pytest.mark.slow
def test_six_searches_that_use_a_new_store_at_once_make_its_schema_once(file: Path) -> None:
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, str(file), str(number)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(6)
    ]  # fmt: skip
    for process in begun:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    with sqlite3.connect(file.parent / "out" / "mlflow.db") as base:
        names = {name for (name,) in base.execute("select name from experiments")}
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        assert len(base.execute("select * from alembic_version").fetchall()) == 1
    assert sum(any(f"n{i}" in name for name in names) for i in range(6)) == 6
