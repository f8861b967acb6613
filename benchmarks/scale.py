"""How the driver carries a large study: 10,000 twin trials with simulated trainings, no network trained.

The real machine, conductor, ledger (fsync and all), MLflow mirror, verdict and report; only the training
bodies are made up. What must stay flat or small: time per ask and tell, memory, resuming, the report;
MLflow must follow in the background without slowing the driver. `--ray` adds 64 declared slots on this
machine: Ray with 64 CPUs to give away and bodies that sleep.

    python benchmarks/scale.py                 about 17 minutes, 1 GB of memory
    python benchmarks/scale.py --requests 1000 --runs 200        20 s, the same on a small scale
    python benchmarks/scale.py --ray --json scale.json           adds about 6 minutes and 8 GB of memory
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aim_tune import engine  # noqa: F401  (sets what Ray and MLflow read at import)
from aim_tune.engine.conductor import Conductor
from aim_tune.engine.resume import declaration, versions
from aim_tune.ledger import Ledger, TrainingResult, pack_ints, read_history
from aim_tune.protocol import Machine
from aim_tune.protocol.importance import importances
from aim_tune.reporting.html import write_report
from aim_tune.spec.request import Job
from aim_tune.spec.space import Choice, Uniform
from aim_tune.spec.study import Addon, Component, Protocol, Recipe, Study
from aim_tune.spec.values import derive_seed
from aim_tune.stats import decide
from aim_tune.tracking.mirror import Mirror

TWINS = 20
"""Per block; more than 10, so that each block searches with TPE."""
EXAMPLES = 500
LABELS = np.arange(EXAMPLES) % 10
EDGE = 1000
"""The first and the last so many requests are compared."""


def make_study(requests: int) -> Study:
    return Study(
        name="scale",
        backbone=Component(name="mlp"),
        data=Component(name="digits"),
        arms=("baseline", "aim"),
        recipe=Recipe(steps=100, evaluations=5),
        shared={"lr": Uniform(1e-3, 1e-1, log=True), "weight_decay": Uniform(1e-5, 1e-2, log=True)},
        addon=Addon(
            name="memory",
            space={"update_width": Choice((8, 16, 32)), "kernel_size": Choice((1, 3))},
        ),
        protocol=Protocol(blocks=max(1, requests // TWINS), twins=TWINS, confirm=1),
    )


def simulated(
    job: Job, study: Study, *, store_root: str | None, report: Callable[[dict[str, Any]], None]
) -> None:
    """The records of a training, without the training."""
    for arm in job.arms:
        request = job.request
        head = {"position": request.position, "arm": arm, "attempt": job.attempts[arm]}
        report({"event": "training_started", **head, "node": "n", "device": "d", "pid": 1})
        generator = random.Random(derive_seed(request.arms[arm].to_dict(), request.streams, arm))
        final = 0.6 + 0.3 * generator.random()
        evaluations = study.recipe.evaluations
        for k in range(1, evaluations + 1):
            score = final * k / evaluations
            measure = {"step": 20 * k, "epoch": 2.0 * k, "train_loss": 1 - score, "lr": 0.01,
                       "val_loss": 1.1 - score, "val_accuracy": score, "seconds": 0.2 * k}  # fmt: skip
            report({"event": "epoch", **head, **measure})
        classes = LABELS + (
            np.random.default_rng(generator.getrandbits(32)).random(EXAMPLES) > final
        )
        result = TrainingResult(
            arm=arm, status="ok", steps=100, allotted_steps=100, val_accuracy=final, val_best=final,
            seconds=1.0, step_ms=10.0, parameters=20000, trainable=20000, device="d", node="n",
            predictions=pack_ints(classes % 10) if request.test else None,
        )  # fmt: skip
        report({"event": "training_done", **head, "result": result.to_dict()})


def sleeping(job: Job, study: Study, *, seconds: float, **kwargs: Any) -> None:
    time.sleep(seconds)
    simulated(job, study, **kwargs)


def drive(
    conductor: Conductor, study: Study, slots: int, pause_s: float = 0.0
) -> list[tuple[float, float]]:
    """Run a study with `slots` jobs out at a time, ended in random order: (ask, tell) in seconds per job.

    `tell` is all that the driver does for a job: its records on disk, the scores, the next decision.
    """
    chance, running, times = random.Random(0), [], []
    began = {}
    while True:
        while len(running) < slots:
            start = time.perf_counter()
            job = conductor.next_job()
            if not isinstance(job, Job):
                break
            began[job.request.position] = time.perf_counter() - start
            running.append(job)
        if not running:
            return times
        job = running.pop(chance.randrange(len(running)))
        records: list[dict[str, Any]] = []
        simulated(job, study, store_root=None, report=records.append)
        time.sleep(pause_s)
        start = time.perf_counter()
        for record in records:
            conductor.event(record)
        conductor.job_done(job)
        times.append((began.pop(job.request.position), time.perf_counter() - start))


def edges(times: list[tuple[float, float]]) -> dict[str, float]:
    """Milliseconds per request, at first and at last. Medians: a shared disk has slow seconds."""
    edge = min(EDGE, len(times) // 3)
    found = {}
    for name, column in (("ask", 0), ("tell", 1)):
        values = [1000 * t[column] for t in times]
        first, last = statistics.median(values[:edge]), statistics.median(values[-edge:])
        mean_first, mean_last = statistics.fmean(values[:edge]), statistics.fmean(values[-edge:])
        found |= {
            f"{name}_first_ms": first, f"{name}_last_ms": last, f"{name}_ratio": last / first,
            f"{name}_mean_ratio": mean_last / mean_first,
        }  # fmt: skip
    return found


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="aim_scale_"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def declare(ledger: Ledger, study: Study) -> None:
    class Info:
        digest = "simulated"

    ledger.append(declaration(study, Info()))  # type: ignore[arg-type]


def search(path: Path, study: Study, slots: int) -> dict[str, Any]:
    """A whole study, then resumed, judged and reported."""
    start = time.perf_counter()
    with Ledger(path / "ledger.jsonl") as ledger:
        declare(ledger, study)
        times = drive(Conductor(study, Machine(study), ledger, LABELS), study, slots)
    found: dict[str, Any] = {
        "requests": len(times), "trainings": 2 * len(times), "blocks": study.protocol.blocks,
        "seconds": time.perf_counter() - start, **edges(times), "memory_mib": memory_mib(),
        "ledger_mib": (path / "ledger.jsonl").stat().st_size / 2**20,
    }  # fmt: skip
    start = time.perf_counter()
    history = read_history(path / "ledger.jsonl")
    found["replay_s"] = time.perf_counter() - start
    assert len(history.done) == len(times)
    return found


def resumed(path: Path, study: Study) -> float:
    """Seconds from opening the ledger of a finished study until nothing is left to run."""
    start = time.perf_counter()
    with Ledger(path / "ledger.jsonl") as ledger:
        machine = Machine(study, recorded=ledger.history.requests.get)
        conductor = Conductor(study, machine, ledger, LABELS)
        assert not isinstance(conductor.next_job(), Job)
        assert conductor.finished
    return time.perf_counter() - start


def reported(path: Path, study: Study) -> dict[str, float]:
    history = read_history(path / "ledger.jsonl")
    start = time.perf_counter()
    verdict = decide(study, history)
    decided = time.perf_counter()
    important = importances(study, history)
    ranked = time.perf_counter()
    write_report(path / "report.html", study, history, verdict, important)
    done = time.perf_counter()
    return {
        "report_s": done - start, "verdict_s": decided - start, "importance_s": ranked - decided,
        "page_s": done - ranked, "report_mib": (path / "report.html").stat().st_size / 2**20,
    }  # fmt: skip


def tracked(runs: int, slots: int) -> dict[str, Any]:
    """MLflow in the background: the driver's times with it and without, and how long it takes."""
    study, found = make_study(runs // 2), {}
    pause_s = 0.02  # a request of 2 s on 64 slots ends about every 30 ms
    for name in ("off", "on"):
        with folder() as path, Ledger(path / "ledger.jsonl") as ledger:
            declare(ledger, study)
            listeners, mirror = [], None
            if name == "on":
                mirror = Mirror(folder=path, study=study, notify=lambda text: None)
                mirror.start()
                listeners = [mirror.event]
            conductor = Conductor(study, Machine(study), ledger, LABELS, listeners)
            start = time.perf_counter()
            times = drive(conductor, study, slots, pause_s)
            found[f"search_{name}_s"] = time.perf_counter() - start
            found[f"ask_tell_{name}_ms"] = 1000 * statistics.median(a + t for a, t in times)
            if mirror is not None:
                found["runs"] = 2 * len(times)
                found["waiting_at_the_end"] = mirror._writer.backlog
                missing = mirror.close()
                assert not missing, missing
                found["mlflow_s"] = time.perf_counter() - start
                found["mlflow_ms_per_run"] = 1000 * found["mlflow_s"] / found["runs"]
    found["slowdown"] = found["search_on_s"] / found["search_off_s"]
    found["memory_mib"] = memory_mib()
    return found


def many_slots(slots: int, requests: int, seconds: float) -> dict[str, Any]:
    """Declared slots on one machine: Ray gives away more CPUs than there are; bodies sleep."""
    import functools

    from aim_tune.engine import ray_tune

    study = replace(
        make_study(requests), protocol=Protocol(blocks=requests // 8, twins=8, confirm=0)
    )
    body = functools.partial(sleeping, seconds=seconds)
    with folder() as path, Ledger(path / "ledger.jsonl") as ledger:
        declare(ledger, study)
        conductor = Conductor(study, Machine(study), ledger, None)
        with ray_tune.opened(study, slots=slots) as opened:
            start = time.time()
            opened.run(conductor, study, None, body=body)
        rows = ledger.history.rows(arm="baseline")
        ends = sorted(t.finished or 0.0 for t in rows)
    half = len(ends) // 2
    steady = (len(ends) - half) * seconds / (ends[-1] - ends[half])
    return {
        "slots": slots, "requests": len(ends), "request_s": seconds, "seconds": ends[-1] - start,
        "busy_slots_second_half": steady,
    }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--requests", type=int, default=10_000)
    p.add_argument("--runs", type=int, default=10_000, help="runs synced to MLflow")
    p.add_argument("--slots", type=int, default=64)
    p.add_argument("--ray", action="store_true", help="also 64 declared slots with Ray")
    p.add_argument("--json", type=Path, metavar="FILE")
    args = p.parse_args()
    found: dict[str, Any] = {"versions": versions()}
    study = make_study(args.requests)
    with folder() as path:
        found["search"] = search(path, study, args.slots)
        show("search", found["search"])
        found["resume_s"] = resumed(path, study)
        show("resume", {"resume_s": found["resume_s"]})
        found["report"] = reported(path, study)
        show("report", found["report"])
    if args.runs:
        found["mlflow"] = tracked(args.runs, args.slots)
        show("mlflow", found["mlflow"])
    if args.ray:
        found["ray"] = many_slots(args.slots, requests=8 * args.slots, seconds=10.0)
        show("ray", found["ray"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def show(title: str, values: dict[str, Any]) -> None:
    line = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )
    print(f"{title:<8} {line}", flush=True)


if __name__ == "__main__":
    main()
