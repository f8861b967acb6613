"""Kill anything, lose nothing: SIGKILLs of driver, worker and MLflow server, also at the worst moments.

Rounds of one small study each (short trainings, Ray with two slots, an MLflow server), fixed seeds. A killed
driver's command is given again, a killed server is started again; Ray replaces workers. A driver is killed
at any moment, or by itself where chance seldom hits (dying_driver.py): with half a record written, while it
resumes, between two calls to MLflow, between the last training and the verdict. At the end of a round the
ledger's table (points, scores, test scores, digests of all weights) must equal that of the same study run
once without any kill, and the rule of invariant.py must hold, in MLflow too.

    python benchmarks/random_kills.py --kills 6              about 2 minutes
    python benchmarks/random_kills.py --json kills.json      50 kills, about 45 minutes on 2 idle cores
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
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dying_driver import MOMENTS
from invariant import check_ledger, check_mlflow, records_of

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
protocol: {explore: {trials: 4, lag: 2}, blocks: 12, twins: 3, confirm: 1}
"""
SEARCH = "import sys; from aim_tune.search import main; sys.exit(main(sys.argv[1:]))"
KINDS = {
    "driver": "the search, at any moment",
    "append": "the search, with half a record written",
    "resume": "the search, while it resumes",
    "mirror": "the search, in the middle of a run in MLflow",
    "verdict": "the search, between the last training and the verdict",
    "worker": "a training process",
    "server": "the MLflow server",
}
"""What is killed."""
STUCK_S = 300.0


@dataclass(kw_only=True)
class Kill:
    """One kill, and what came of it."""

    round: int
    number: int
    time_s: float
    """Since the start of this script."""
    what: str
    """See KINDS."""
    where: str
    """What it was doing, and how far the study was."""
    then: str = ""
    """What happened next."""
    after_s: float | None = None
    """Seconds until it went on."""


class Server:
    """An MLflow server on a port of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start_at: float | None = None
        """When it is to be started again; None: it runs."""
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.start_at = None
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
                   "--artifacts-destination", str(self._folder / "artifacts"), "--workers", "1",
                   "--port", str(self.port)]  # fmt: skip
        self._process = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    @property
    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
            return True
        return False

    def wait(self) -> None:
        """Until it answers; it is started if it was not to be yet."""
        if self.start_at is not None:
            self.start()
        until = time.monotonic() + STUCK_S
        while not self.answers:
            assert time.monotonic() < until, "the MLflow server does not start"
            time.sleep(0.5)

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Round:
    """One study, killed again and again until it is done."""

    def __init__(self, folder: Path, seed: int, kills: int, log: Log, kinds: Sequence[str]) -> None:
        self.folder, self.log, self.seed, self.most = folder, log, seed, kills
        self.random = random.Random(seed)
        self.kills: list[Kill] = []
        self.file = folder / "study.yaml"
        self.file.write_text(STUDY)
        self.server = Server(folder)
        self.planned = 0
        self._open: tuple[Kill, float, Callable[[], str]] | None = None
        """The last kill, when it was, and what tells what came of it ("" as long as nothing has)."""
        self._traps = [kind for kind in kinds if kind in MOMENTS]
        self._moments = list(self._traps)
        self._strikes = [k for k in ("driver", "worker", "worker", "server") if k in kinds]
        self.moment = ""
        """When the driver that runs now is to kill itself; "": not by itself."""
        self._driver: subprocess.Popen[bytes] | None = None

    # --- the study ------------------------------------------------------------------------------

    def options(self, out: str, *flags: str) -> list[str]:
        return [str(self.file), "--set", f"protocol.seed={self.seed}", "--out", str(self.folder / out),
                "--quiet", *flags]  # fmt: skip

    def environment(self) -> dict[str, str]:
        more = {
            "AIM_TUNE_REGISTRY": str(self.folder / "registry.jsonl"),
            "AIM_TUNE_DEATH": str(self.folder / "death.txt"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder),
        }
        return {**os.environ, **more}

    def expected(self) -> History:
        """The study without a kill, in one process."""
        flags = ("--engine", "in_process", "--tracking", "off")
        command = [sys.executable, "-c", SEARCH, *self.options("whole", *flags)]
        subprocess.run(command, env=self.environment(), check=True, stdout=subprocess.DEVNULL)
        history = read_history(self.folder / "whole" / "kills" / "ledger.jsonl")
        self.planned = len(history.trainings)
        return history

    @property
    def home(self) -> Path:
        return self.folder / "killed" / "kills"

    def start(self) -> subprocess.Popen[bytes]:
        """The command of the study, with or without a trap in it."""
        flags = ("--slots", "2", "--tracking", "optional", "--tracking-uri", self.server.uri)
        trap = Path(__file__).with_name("dying_driver.py")
        self.moment = self.next_moment()
        first = [str(trap), self.moment, str(self.count())] if self.moment else ["-c", SEARCH]
        with open(self.folder / "said.txt", "ab") as said:
            self._driver = subprocess.Popen([sys.executable, *first, *self.options("killed", *flags)],
                                            env=self.environment(), start_new_session=True, stdout=said,
                                            stderr=said)  # fmt: skip
        return self._driver

    def end(self) -> None:
        """Leave nothing behind, however this script ends."""
        self.server.kill()
        if self._driver is not None and self._driver.poll() is None:
            self._driver.terminate()
            self._driver.wait()

    def next_moment(self) -> str:
        """Each moment once in a random order, then any; some starts have no trap. The verdict's is left for
        the last quarter of the study, or the last kill."""
        left = self.most - len(self.kills)
        late = left == 1 or self.progress() > 0.75 * self.planned
        if "verdict" in self._moments and left and late:
            self._moments.remove("verdict")
            return "verdict"
        able = ("append", "mirror", "resume") if self.home.exists() else ("append", "mirror")
        traps = [moment for moment in able if moment in self._traps]
        if not traps or not left or (self._strikes and self.random.random() < 0.4):
            return ""
        chosen = self.random.choice([m for m in traps if m in self._moments] or traps)
        self._moments = [moment for moment in self._moments if moment != chosen]
        return chosen

    def count(self) -> int:
        requests = sum(r["event"] == "request_done" for r in self.records())
        most = {"append": 60, "mirror": 6, "resume": max(1, requests)}.get(self.moment, 1)
        return 1 + self.random.randrange(most)

    # --- killing --------------------------------------------------------------------------------

    def run(self) -> History:
        """Until the study is done."""
        self.server.start()
        self.server.wait()
        driver = self.start()
        until = time.monotonic() + STUCK_S
        goal = self.progress() + self.random.randrange(8)
        while (code := driver.poll()) in (None, -signal.SIGKILL):
            if self.server.start_at is not None and time.monotonic() > self.server.start_at:
                self.server.start()
            self.settle(last_word="the search died first" if code is not None else "")
            before = len(self.kills)
            if code is not None:
                driver = self.died_by_itself()
            elif self.may_strike() and self.progress() >= goal:
                driver = self.strike(driver)
            if len(self.kills) > before:
                goal, until = self.progress() + self.random.randrange(8), time.monotonic() + STUCK_S
            assert time.monotonic() < until, f"nothing has happened for {STUCK_S:.0f} s"
            time.sleep(0.02)
        self.settle(last_word="the study was done first")
        said = (self.folder / "said.txt").read_text()
        assert code == 0, f"exit code {code}: {said[-3000:]}"
        return read_history(self.home / "ledger.jsonl")

    def died_by_itself(self) -> subprocess.Popen[bytes]:
        doing = (self.folder / "death.txt").read_text()
        self.note(self.moment, f"{doing}; {self.place()}", self.goes_on())
        return self.start()

    def strike(self, driver: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Kill one of the three; the driver that runs afterwards."""
        time.sleep(self.random.random() * 0.3)
        what = self.random.choice(self._strikes)
        if what == "driver" and driver.poll() is None:
            self.note(what, self.place(), self.goes_on())
            driver.kill()
            driver.wait()
            return self.start()
        if what == "worker" and (running := self.running()):
            pid = self.random.choice(list(running))
            position, arm, attempt = running[pid]
            place = f"{position} {arm}, attempt {attempt}; {self.place()}"
            self.note(what, place, self.tried_again(position, arm))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif what == "server":
            self.server.start_at = time.monotonic() + self.random.random() * 4
            self.note(what, self.place(), self.answers_again)
            self.server.kill()
        return driver

    def note(self, what: str, where: str, outcome: Callable[[], str]) -> None:
        kill = Kill(
            round=self.seed, number=self.log.number(), time_s=self.log.now(), what=what, where=where
        )
        self.kills.append(kill)
        self._open = (kill, time.monotonic(), outcome)

    def settle(self, *, last_word: str = "") -> None:
        """Log the last kill once it is known what came of it; with `last_word` now."""
        if self._open is None:
            return
        kill, began, outcome = self._open
        then = outcome()
        if then:
            kill.after_s = round(time.monotonic() - began, 1)
        else:
            then = last_word
        if then:
            kill.then, self._open = then, None
            self.log.kill(kill)

    def goes_on(self) -> Callable[[], str]:
        resumed, verdicts = self.count_of("resumed"), self.count_of("verdict")

        def outcome() -> str:
            if self.count_of("verdict") > verdicts:
                return "wrote the verdict"
            done = len(self.finished())
            return f"went on with {done} done" if self.count_of("resumed") > resumed else ""

        return outcome

    def tried_again(self, position: str, arm: str) -> Callable[[], str]:
        before = len(self.records())

        def outcome() -> str:
            after = [r for r in self.records()[before:] if r.get("position") == position]
            lost = next((i for i, r in enumerate(after) if r["event"] == "job_lost"), None)
            if lost is None:
                ended = any(r["event"] == "training_done" and r["arm"] == arm for r in after)
                return "it had just ended, nothing was lost" if ended else ""
            again = (r for r in after[lost:] if r["event"] == "training_started" and r["pid"])
            return next((f"said lost; attempt {r['attempt']} began" for r in again), "")

        return outcome

    def answers_again(self) -> str:
        return "answers again" if self.server.start_at is None and self.server.answers else ""

    # --- where the study is -----------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        return records_of(self.home) if (self.home / "ledger.jsonl").exists() else []

    def count_of(self, event: str) -> int:
        return sum(r["event"] == event for r in self.records())

    def progress(self) -> int:
        return self.count_of("training_done")

    def finished(self) -> set[tuple[str, str]]:
        return {(r["position"], r["arm"]) for r in self.records() if r["event"] == "training_done"}

    def place(self) -> str:
        return f"{len(self.finished())} of {self.planned} done, {len(self.running())} running"

    def may_strike(self) -> bool:
        """Kills are left, the last one is over, something runs, and nothing runs for the third time nor
        will next: a third loss ends a training as failed, which is the rule (at most 3 attempts) and no
        fault."""
        left = self.most - len(self.kills) - bool(self.moment)  # one is the trap's
        busy = self._open is not None or self.server.start_at is not None
        if left < 1 or busy or not self._strikes:
            return False
        running = set(self.running().values())
        ahead = [n if (*key, n) in running else n + 1 for key, (_, n) in self.begun().items()]
        return bool(running) and max(ahead) < ATTEMPTS

    def begun(self, *, resumed: bool = False) -> dict[tuple[str, str], tuple[int, int]]:
        """(position, arm) -> process and number of the last attempt of each training that has begun and
        not ended, as the ledger says; with `resumed` only what has begun since the search last went on."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for r in self.records():
            match r["event"]:
                case "training_started":
                    found[r["position"], r["arm"]] = (r["pid"], r["attempt"])
                case "training_done":
                    found.pop((r["position"], r["arm"]), None)
                case "resumed" if resumed:
                    found.clear()
        return found

    def running(self) -> dict[int, tuple[str, str, int]]:
        """Processes that train now (alive): position, arm and number of the attempt."""
        now = self.begun(resumed=True)
        alive = {k: v for k, v in now.items() if v[0] and Path(f"/proc/{v[0]}").exists()}
        return {pid: (position, arm, n) for (position, arm), (pid, n) in alive.items()}


class Log:
    """One line for each kill, and a table at the end."""

    def __init__(self) -> None:
        self._began, self._number = time.monotonic(), 0

    def now(self) -> float:
        return round(time.monotonic() - self._began, 1)

    def number(self) -> int:
        self._number += 1
        return self._number

    def say(self, text: str) -> None:
        print(f"{self.now():7.1f} s  {text}", flush=True)

    def kill(self, kill: Kill) -> None:
        after = f" after {kill.after_s:.1f} s" if kill.after_s is not None else ""
        print(f"{kill.time_s:7.1f} s  #{kill.number:<3} {kill.what:<8} {kill.where}  ->  {kill.then}{after}",
              flush=True)  # fmt: skip

    def table(self, kills: list[Kill]) -> None:
        print(f"\n{'killed':<60} {'times':>5}  {'went on after, median (longest)':>32}")
        for what, text in KINDS.items():
            own = [k for k in kills if k.what == what]
            waits = [k.after_s for k in own if k.after_s is not None]
            shown = f"{statistics.median(waits):.1f} s ({max(waits):.1f} s)" if waits else "-"
            print(f"{f'{what}: {text}':<60} {len(own):>5}  {shown:>32}")


def table(history: History) -> dict[tuple[str, str], Any]:
    """All that must not depend on what was killed."""
    return {
        key: (t.point.to_dict(), dict(t.streams), t.status, t.score, t.test_accuracy, t.correct,
              [(m.step, m.val_accuracy) for m in t.curve], t.result and t.result.weights_sha256)
        for key, t in sorted(history.trainings.items())
    }  # fmt: skip


def check(round_: Round, expected: History, found: History) -> None:
    """Raise AssertionError where anything was lost, done twice, or came out differently."""
    mine, theirs = table(expected), table(found)
    differ = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
    how = [(key, mine.get(key), theirs.get(key)) for key in differ[:2]]
    assert not differ, f"{len(differ)} of {len(mine)} trainings differ: {how}"
    assert len(found.looks) == len(expected.looks), "a test look was repeated"
    records = round_.records()
    check_ledger(found, records)
    done: set[tuple[str, str]] = set()
    for r in records:
        if r["event"] == "training_done":
            done.add((r["position"], r["arm"]))
        elif r["event"] == "training_started":
            key = (r["position"], r["arm"])
            assert key not in done, f"{key} was finished and ran again"
    fill_mlflow(round_)
    check_mlflow(found, round_.server.uri)


def fill_mlflow(round_: Round) -> None:
    """What a search says where MLflow was away until its end: one command writes what is missing."""
    round_.server.wait()
    fill = [sys.executable, "-m", "aim_tune.track", str(round_.home)]
    subprocess.run([*fill, "--tracking-uri", round_.server.uri], env=round_.environment(),
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder; it stays where something was lost, for whoever wants to know how."""
    path = Path(tempfile.mkdtemp(prefix="ak"))  # short: Ray puts sockets below
    try:
        yield path
    except AssertionError as error:
        error.add_note(f"The ledger and all that was said are in {path}.")
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)


def one_round(seed: int, kills: int, log: Log, kinds: Sequence[str]) -> Round:
    """A study, killed at most so often, and compared with the same study left alone."""
    with folder() as path:
        round_ = Round(path, seed, kills, log, kinds)
        expected = round_.expected()
        log.say(f"study {seed}: {round_.planned} trainings, run once without a kill; now again")
        try:
            check(round_, expected, round_.run())
        finally:
            round_.end()
    log.say(f"study {seed}: {len(round_.kills)} kills; every point, score and digest of weights is the same, "
            "each training ran to its end once, MLflow says what the ledger says")  # fmt: skip
    return round_


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--round", type=int, default=17, help="kills per study, at most")
    p.add_argument("--seed", type=int, default=0, help="of the first study (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="every kill and the versions, as JSON")
    p.add_argument(
        "--what", default=",".join(KINDS), help="what is killed, of %(default)s; all without it"
    )
    args = p.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that processes and folders are removed
    kinds = args.what.split(",")
    if unknown := set(kinds) - set(KINDS):
        p.error(f"--what: {', '.join(sorted(unknown))} is none of {', '.join(KINDS)}")
    kills: list[Kill] = []
    log, seed = Log(), args.seed
    print("when killed  number, what, where it was  ->  what happened next\n")
    while len(kills) < args.kills:
        before = len(kills)
        kills += one_round(seed, min(args.kills - len(kills), args.round), log, kinds).kills
        seed += 1
        assert len(kills) > before, "the study ended before anything was killed"
    log.table(kills)
    studies = seed - args.seed
    log.say(f"{len(kills)} kills in {studies} studies: nothing was lost, nothing was done twice")
    if args.json:
        found = {"kills": [asdict(k) for k in kills], "studies": studies, "versions": versions()}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
