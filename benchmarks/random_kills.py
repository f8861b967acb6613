"""Kill anything, lose nothing: random SIGKILLs of driver, worker and tracking server, fixed seeds.

Rounds of one small study each (short trainings, Ray with two slots, an MLflow server): at random moments
the driver, one of the training processes or the server is killed without warning; a killed driver's
command is given again, a killed server is started again. At the end of a round the ledger's table
(points, scores, test scores, digests of all weights) must equal that of the same study run once without
any kill, no finished training may have run again, and MLflow must hold every training once, with the
ledger's score.

    python benchmarks/random_kills.py --kills 5      2 minutes
    python benchmarks/random_kills.py                50 kills, 10 to 15 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from aim_tune.engine.conductor import ATTEMPTS
from aim_tune.engine.resume import versions
from aim_tune.ledger import History, read_history

STUDY = """
name: kills
backbone: {name: mlp}
data: {name: digits, image_size: 8, train_images: 60, val_images: 60}
arms: [baseline, aim]
recipe: {steps: 60, batch_size: 8, evaluations: 3}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 4, lag: 2}, blocks: 16, twins: 3, confirm: 1}
"""
WHAT = ("driver", "worker", "server")
STUCK_S = 300.0


class Server:
    """An MLflow server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
                   "--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1",
                   "--port", str(self.port)]  # fmt: skip
        self._process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self) -> None:
        until = time.monotonic() + STUCK_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            time.sleep(0.5)
        raise AssertionError("the MLflow server does not start")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Round:
    """One study, killed at random until it is done."""

    def __init__(self, folder: Path, seed: int, kills: int, log: Any) -> None:
        self.folder, self.log = folder, log
        self.random = random.Random(seed)
        self.kills = kills
        self.done: list[str] = []
        self.file = folder / "study.yaml"
        self.file.write_text(STUDY)
        self.seed = seed
        self.server = Server(folder)
        self._restart_server_at = 0.0

    def command(self, out: str, *flags: str) -> list[str]:
        return [sys.executable, "-m", "aim_tune.search", str(self.file), "--set",
                f"protocol.seed={self.seed}", "--out", str(self.folder / out), "--quiet", *flags]  # fmt: skip

    def environment(self) -> dict[str, str]:
        more = {"AIM_TUNE_REGISTRY": str(self.folder / "registry.jsonl"), "OMP_NUM_THREADS": "1"}
        return {**os.environ, **more, "TMPDIR": str(self.folder)}

    def expected(self) -> History:
        """The study without a kill, in one process."""
        flags = ("--engine", "in_process", "--tracking", "off")
        subprocess.run(self.command("whole", *flags), env=self.environment(), check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        return read_history(self.folder / "whole" / "kills" / "ledger.jsonl")

    @property
    def ledger(self) -> Path:
        return self.folder / "killed" / "kills" / "ledger.jsonl"

    def start(self) -> subprocess.Popen[bytes]:
        flags = ("--slots", "2", "--tracking", "optional", "--tracking-uri", self.server.uri)
        with open(self.folder / "said.txt", "ab") as said:
            return subprocess.Popen(self.command("killed", *flags), env=self.environment(),
                                    start_new_session=True, stdout=said, stderr=said)  # fmt: skip

    def run(self) -> History:
        """Until the study is done and no driver is killed any more."""
        self.server.start()
        self.server.wait()
        driver = self.start()
        until = time.monotonic() + STUCK_S
        goal = self.progress() + self.random.randrange(6)
        while driver.poll() is None:
            self.revive()
            if len(self.done) < self.kills and self.progress() >= goal and self.may_strike():
                driver = self.strike(driver)
                goal, until = self.progress() + self.random.randrange(6), time.monotonic() + STUCK_S
            assert time.monotonic() < until, f"nothing has happened for {STUCK_S:.0f} s"
            time.sleep(0.02)
        said = (self.folder / "said.txt").read_text()
        assert driver.returncode == 0, f"exit code {driver.returncode}: {said[-3000:]}"
        return read_history(self.ledger)

    def strike(self, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Kill one of the three; the driver that runs afterwards."""
        time.sleep(self.random.random() * 0.3)
        what = self.random.choice(WHAT)
        at = f"{len(self.finished())} trainings done"
        if what == "driver":
            driver.kill()
            driver.wait()
            driver = self.start()
        elif what == "worker":
            pids = list(self.running())
            if not pids:
                return driver
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGKILL)
        elif not self._restart_server_at:
            self.server.kill()
            self._restart_server_at = time.monotonic() + self.random.random() * 4
        else:
            return driver
        self.done.append(what)
        self.log(f"round {self.seed} kill {len(self.done)}: {what}, {at}")
        return driver

    def revive(self) -> None:
        if self._restart_server_at and time.monotonic() > self._restart_server_at:
            self.server.start()
            self._restart_server_at = 0.0

    def records(self) -> list[dict[str, Any]]:
        lines = self.ledger.read_bytes().splitlines(keepends=True) if self.ledger.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def progress(self) -> int:
        return sum(r["event"] == "training_done" for r in self.records())

    def finished(self) -> set[tuple[str, str]]:
        return {(r["position"], r["arm"]) for r in self.records() if r["event"] == "training_done"}

    def may_strike(self) -> bool:
        """Something runs, and nothing for the third time: a third loss ends a training as failed, which
        is the rule (at most 3 attempts) and no fault."""
        attempts = self.running().values()
        return bool(attempts) and max(attempts) < ATTEMPTS

    def running(self) -> dict[int, int]:
        """Processes that train now, as the ledger says (begun since the last start, and alive), with the
        number of their attempt."""
        pids: dict[tuple[str, str], tuple[int, int]] = {}
        for r in self.records():
            match r["event"]:
                case "training_started":
                    pids[r["position"], r["arm"]] = (r["pid"], r["attempt"])
                case "training_done":
                    pids.pop((r["position"], r["arm"]), None)
                case "resumed":
                    pids.clear()
        return {pid: n for pid, n in pids.values() if pid and Path(f"/proc/{pid}").exists()}


def table(history: History) -> dict[tuple[str, str], Any]:
    """All that must not depend on what was killed."""
    return {
        key: (t.point.to_dict(), dict(t.streams), t.status, t.score, t.test_accuracy, t.correct,
              [(m.step, m.val_accuracy) for m in t.curve], t.result and t.result.weights_sha256)
        for key, t in sorted(history.trainings.items())
    }  # fmt: skip


def check(round_: Round, expected: History, found: History) -> dict[str, int]:
    """Raise AssertionError where anything was lost or done twice; what was compared."""
    mine, theirs = table(expected), table(found)
    differ = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
    how = [(key, mine.get(key), theirs.get(key)) for key in differ[:2]]
    assert not differ, f"{len(differ)} of {len(mine)} trainings differ: {how}"
    done = [(r["position"], r["arm"]) for r in round_.records() if r["event"] == "training_done"]
    assert len(done) == len(set(done)), "a training has two results"
    assert len(found.looks) == len(expected.looks), "a test look was repeated"
    trained = {key: t for key, t in found.trainings.items() if not t.reused_from}
    assert len(done) == len(trained)
    runs = in_mlflow(round_)
    assert set(runs) == {f"{p}/{a}" for p, a in trained}, "MLflow holds other trainings"
    for (position, arm), t in trained.items():
        assert runs[f"{position}/{arm}"] == t.score, f"{position} {arm}: another score in MLflow"
    return {"trainings": len(trained), "runs": len(runs)}


def in_mlflow(round_: Round) -> dict[str, float | None]:
    """position/arm -> score of each run, after the gap is filled as the search says."""
    if round_._restart_server_at:
        round_.server.start()
    round_.server.wait()
    folder = str(round_.ledger.parent)
    fill = [sys.executable, "-m", "aim_tune.track", folder]
    subprocess.run([*fill, "--tracking-uri", round_.server.uri], env=round_.environment(),
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    client = MlflowClient(round_.server.uri)
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    found: dict[str, float | None] = {}
    for run in client.search_runs(experiments, max_results=5000):
        name = run.data.tags["aim_tune.key"].partition("/")[2]
        if run.data.tags.get("aim.phase") == "verdict":
            continue
        assert name not in found, f"{name} has two runs"
        found[name] = run.data.metrics.get("val/accuracy")
    return found


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ak"))  # short: Ray puts sockets below
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--round", type=int, default=17, help="kills per study, at most")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    began, left, seed, rounds = time.time(), args.kills, 0, []

    def log(text: str) -> None:
        print(f"{time.time() - began:6.0f} s  {text}", flush=True)

    while left > 0:
        with folder() as path:
            round_ = Round(path, seed, min(left, args.round), log)
            expected = round_.expected()
            log(f"round {seed}: {len(expected.trainings)} trainings without a kill")
            try:
                counts = check(round_, expected, round_.run())
            finally:
                round_.server.kill()
        kinds = {what: round_.done.count(what) for what in WHAT}
        log(f"round {seed}: {len(round_.done)} kills {kinds}; the table is the same, {counts}")
        rounds.append({"seed": seed, "kills": kinds, **counts})
        left -= len(round_.done)
        seed += 1
    total = {what: sum(r["kills"][what] for r in rounds) for what in WHAT}
    log(f"{sum(total.values())} kills {total} in {len(rounds)} studies: every table is the same")
    if args.json:
        found = {"rounds": rounds, "kills": total, "versions": versions()}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
