"""A search in a process of its own, on Ray with two slots, killed or stopped at any moment."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aim_tune import search
from aim_tune.ledger import History, read_history

pytestmark = pytest.mark.kills

SLOWER = float(os.environ.get("AIM_TUNE_SLOWER", "1"))
"""How much longer than an idle machine of two cores this one may take to stop a search."""

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
recipe: {steps: 40, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 2, lag: 1}, blocks: 2, twins: 2, confirm: 1}
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kills") / "tiny.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def expected(file: Path) -> dict[Any, Any]:
    """The study without interruption, in this process: the same bits as Ray gives."""
    out = file.parent / "whole"
    flags = ["--out", str(out), "--engine", "in_process", "--tracking", "off", "--quiet"]
    assert search.main([str(file), *flags]) == 0
    return outcome(history_of(out / "tiny"))


def history_of(folder: Path) -> History:
    return read_history(folder / "ledger.jsonl")


def outcome(history: History) -> dict[Any, Any]:
    return {
        key: (t.point.to_dict(), t.score, t.test_accuracy, t.result.weights_sha256)
        for key, t in history.trainings.items()
        if t.result
    }


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r for r in records if r["event"] == kind]


class Started:
    """A search in its own process group; what it started is found by a mark in the environment or, as
    Ray's processes write their names over their environment, as a descendant seen by `wait_for`."""

    def __init__(
        self,
        file: Path,
        out: Path,
        *flags: str,
        temporary: Path,
        terminal: int | None = None,
        first: str = "",
    ) -> None:
        self.mark = f"AIM_TUNE_TEST_MARK={out.name}-{time.monotonic_ns()}"
        name, _, value = self.mark.partition("=")
        self.folder = out / "tiny"
        command = [sys.executable, "-m", "aim_tune.search", str(file), "--out", str(out)]
        if first:
            command = [sys.executable, "-c", first + RUN, *command[2:]]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        if terminal is not None:
            command = [sys.executable, "-c", TERMINAL, *command[2:]]
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
        self.process = subprocess.Popen(
            [*command, "--tracking", "off", "--slots", "2", *flags],
            env={**os.environ, name: value, "TMPDIR": str(temporary)},
            start_new_session=True,
            text=True,
            **streams,
        )
        self.descendants: set[psutil.Process] = set()

    def wait_for(self, kind: str, count: int) -> None:
        """Until the ledger has so many records of a kind."""
        until = time.monotonic() + 240
        while time.monotonic() < until:
            assert self.process.poll() is None, self.process.communicate()[0]
            ledger = self.folder / "ledger.jsonl"
            if ledger.is_file() and ledger.read_text().count(f'"event":"{kind}"') >= count:
                self.descendants |= set(psutil.Process(self.process.pid).children(recursive=True))
                return
            time.sleep(0.05)
        raise AssertionError(f"no {count} {kind} within four minutes")

    def left(self) -> list[str]:
        """Command lines of its processes."""
        found = []
        for process in psutil.process_iter():
            try:
                place = Path(f"/proc/{process.pid}")
                if (
                    process in self.descendants
                    or self.mark.encode() in (place / "environ").read_bytes()
                ):
                    found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return [command for command in found if command]

    def gone_after(self, seconds: float) -> list[str]:
        """What is left after so many seconds."""
        until = time.monotonic() + seconds
        while self.left() and time.monotonic() < until:
            time.sleep(0.2)
        return self.left()


RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_module('aim_tune.search', run_name='__main__')"
TERMINAL = (
    (
        "import fcntl, termios;"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"  # the terminal is this session's now
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # also where tests run under nohup
    )
    + RUN
)
FAILING = """
from aim_tune.errors import ResourceError
from aim_tune.ledger import Ledger
append, done = Ledger.append, []
def refuse(ledger, event):
    done.extend([event] * (event["event"] == "training_done"))
    if len(done) > 4:
        raise ResourceError("the disk is on fire")
    return append(ledger, event)
Ledger.append = refuse
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files, with a name short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="t"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


Finish = Callable[..., Started]
"""(out, *flags) -> the same command again, which has ended."""


@pytest.fixture
def finish(file: Path, temporary: Path, expected: dict[Any, Any], invariant: Any) -> Finish:
    """The same command again, to its end: the uninterrupted result, nothing done twice, nothing left."""

    def run(out: Path, *flags: str) -> Started:
        again = Started(file, out, *flags, temporary=temporary)
        said, _ = again.process.communicate(timeout=300)
        assert again.process.returncode == 0, said
        assert outcome(invariant.check_folder(again.folder)) == expected
        assert again.gone_after(10) == []
        assert left_in(temporary) == []  # that of killed ones is gone as well
        return again

    return run


def left_in(temporary: Path) -> list[str]:
    """Names of temporary files and folders; torch keeps one for its compiler, the same for all processes."""
    names = [path.name for path in temporary.iterdir()]
    return [name for name in names if not name.startswith("torchinductor_")]


def test_a_killed_driver_resumes_to_the_uninterrupted_result(
    file: Path,
    tmp_path: Path,
    temporary: Path,
    expected: dict[Any, Any],
    finish: Finish,
    invariant: Any,
) -> None:
    """And MLflow, in which it was in the middle of writing, says the same."""
    tracking = ("--tracking", "on")
    first = Started(file, tmp_path / "killed", *tracking, temporary=temporary)
    first.wait_for("training_done", 7)
    first.process.kill()
    first.process.communicate()
    finished = set(outcome(history_of(first.folder)))
    assert 7 <= len(finished) < len(expected)
    trainers = [command for command in first.gone_after(5 * SLOWER) if "ImplicitFunc" in command]
    assert trainers == []
    second = finish(tmp_path / "killed", *tracking)
    assert (
        first.gone_after(75) == []
    )  # Ray's agents try for a minute to say that they lost their head
    invariant.check_folder(second.folder, f"sqlite:///{second.folder.parent / 'mlflow.db'}")
    begun = [(r["position"], r["arm"]) for r in events(second.folder, "training_started")]
    assert all(begun.count(key) == 1 for key in finished)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_driver_that_is_killed_again_while_it_resumes_loses_nothing(
    seed: int, file: Path, tmp_path: Path, temporary: Path, finish: Finish
) -> None:
    chance = random.Random(seed)
    first = Started(file, tmp_path / "killed", temporary=temporary)
    first.wait_for("training_done", 3)
    first.process.kill()
    first.process.communicate()
    second = Started(file, tmp_path / "killed", temporary=temporary)
    if seed:  # at any moment of its start, or soon after the ledger says that it goes on
        second.wait_for("resumed", 1)
    time.sleep(chance.random() * 4)
    second.process.kill()
    second.process.communicate()
    finish(tmp_path / "killed")


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_search_within_ten_seconds_leaves_nothing_and_the_command_finishes_it(
    signum: int, code: int, file: Path, tmp_path: Path, temporary: Path, finish: Finish
) -> None:
    started = Started(file, tmp_path / "stopped", temporary=temporary)
    started.wait_for("training_done", 3)
    began = time.monotonic()
    # a terminal sends Ctrl-C to the whole group, a system sends SIGTERM to the driver alone
    (os.killpg if signum == signal.SIGINT else os.kill)(started.process.pid, signum)
    said, _ = started.process.communicate(timeout=30 * SLOWER)
    assert time.monotonic() - began < 10 * SLOWER
    assert started.process.returncode == code, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert started.gone_after(5) == []
    assert left_in(temporary) == []
    assert [r["reason"] for r in events(started.folder, "interrupted")] == [
        signal.Signals(signum).name
    ]
    finish(tmp_path / "stopped")


@pytest.mark.parametrize("after_s", [0.5, 3.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_signal_while_the_search_starts_ends_it_as_later(
    after_s: float, file: Path, tmp_path: Path, temporary: Path
) -> None:
    """While libraries are loaded, while Ray starts, and shortly after."""
    started = Started(file, tmp_path / "early", temporary=temporary)
    time.sleep(after_s)
    began = time.monotonic()
    started.process.terminate()
    said, _ = started.process.communicate(timeout=30 * SLOWER)
    assert time.monotonic() - began < 10 * SLOWER
    assert started.process.returncode == 143, said
    assert "Traceback" not in said
    assert started.gone_after(15) == []  # Ray's agents notice within 10 s that their head is gone
    assert left_in(temporary) == []


def test_a_closed_terminal_ends_the_search_and_leaves_nothing(
    file: Path, tmp_path: Path, temporary: Path
) -> None:
    screen, terminal = os.openpty()
    started = Started(file, tmp_path / "closed", temporary=temporary, terminal=terminal)
    os.close(terminal)
    os.set_blocking(screen, False)
    reading = True
    until = time.monotonic() + 240
    while reading and time.monotonic() < until:  # a terminal nobody reads would stop the search
        try:
            os.read(screen, 65536)
        except BlockingIOError:
            time.sleep(0.05)
        ledger = started.folder / "ledger.jsonl"
        reading = not ledger.is_file() or ledger.read_text().count('"event":"training_done"') < 3
    os.close(screen)  # the kernel tells the whole session
    assert started.process.wait(timeout=30 * SLOWER) == 129
    assert started.gone_after(5) == []
    assert left_in(temporary) == []
    assert [r["reason"] for r in events(started.folder, "interrupted")] == ["SIGHUP"]


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_lost(
    file: Path, tmp_path: Path, temporary: Path, expected: dict[Any, Any], invariant: Any
) -> None:
    started = Started(file, tmp_path / "bereft", temporary=temporary)
    started.wait_for("training_started", 2)
    victim = events(started.folder, "training_started")[-1]
    os.kill(victim["pid"], signal.SIGKILL)
    said, _ = started.process.communicate(timeout=300)
    assert started.process.returncode == 0, said
    assert outcome(invariant.check_folder(started.folder)) == expected
    assert started.gone_after(10) == []
    assert left_in(temporary) == []
    (lost,) = events(started.folder, "job_lost")
    assert lost["position"] == victim["position"]


@pytest.mark.slow
def test_a_search_that_ends_with_an_error_leaves_nothing_and_the_command_finishes_it(
    file: Path, tmp_path: Path, temporary: Path, finish: Finish
) -> None:
    """The driver itself fails, while both slots train."""
    started = Started(file, tmp_path / "failed", temporary=temporary, first=FAILING)
    said, _ = started.process.communicate(timeout=300)
    assert started.process.returncode == 2, said
    assert "the disk is on fire" in said
    assert started.gone_after(15) == []
    assert left_in(temporary) == []
    assert len(events(started.folder, "training_done")) == 4
    finish(tmp_path / "failed")


def free_cpus(cluster: Any, *, within_s: float) -> float:
    """CPUs that nobody holds, once all are free or the time is over; placement groups hold some."""
    import ray

    ray.init(address=cluster.address, logging_level="CRITICAL", log_to_driver=False)
    try:
        until = time.monotonic() + within_s
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < until:
            time.sleep(0.2)
        states = {group["state"] for group in ray.util.placement_group_table().values()}
        assert states <= {"REMOVED"}, states
        return ray.available_resources().get("CPU", 0)
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_search_on_a_running_cluster_gives_it_back_after_a_kill_and_after_its_end(
    file: Path, tmp_path: Path, temporary: Path, no_ray: None, invariant: Any
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    address = ("--address", cluster.address)
    try:
        killed = Started(file, tmp_path / "joined", *address, temporary=temporary)
        killed.wait_for("training_done", 4)
        killed.process.kill()
        killed.process.communicate()
        assert free_cpus(cluster, within_s=60) == 2
        again = Started(file, tmp_path / "joined", *address, temporary=temporary)
        said, _ = again.process.communicate(timeout=300)
        assert again.process.returncode == 0, said
        invariant.check_folder(again.folder)
        assert again.gone_after(10) == []
        assert left_in(temporary) == []
        assert free_cpus(cluster, within_s=60) == 2
        assert cluster.head_node.all_processes  # the search did not end what it had not started
        assert (again.folder / "verdict.json").is_file()
    finally:
        cluster.shutdown()
