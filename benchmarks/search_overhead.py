"""Does the machinery keep the slots training? Share of wall time spent in trainings, four ways, in one run.

Twin requests (baseline and aim, ResNet-8 on digits) of about 2 s and 10 s, two slots, one thread each:

    bare     two processes that train one request after the other and do nothing else: the limit
    ours     aim_tune on Ray Tune: ledger, progress and MLflow (sqlite) as in `python -m aim_tune.search`
    tune     plain Ray Tune with its defaults, OptunaSearch and MLflowLoggerCallback (sqlite)
    optuna   plain Optuna, n_jobs=2 (threads of one process)

`share`: wall time in trainings / (slots x time), from the end of the warm-up (four requests) until a queue
is empty (bare loops have one each). `busy`: processor time that trainings got / (slots x time): what the
machinery takes from trainings where slots have no core to spare. `of_limit`: requests per second against
bare loops, which run before and after the others, as the speed of a machine drifts. `start_s`: from the
command to the first training.
Requests are the same in all four: same steps, same points, same streams.

    python benchmarks/search_overhead.py              about 27 minutes on two idle cores
    python benchmarks/search_overhead.py --slots 1    the same with a core to spare for the machinery
    python benchmarks/search_overhead.py --seconds 2 --requests 12 --only bare ours     1 minute
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

SLOTS = int(os.environ.get("SLOTS", "2"))
"""For the processes below; --slots."""
WARM_UP = 4
WAYS = ("bare", "ours", "tune", "optuna")
STUDY = """
name: overhead
backbone: {name: resnet8, width: 8}
data: {name: digits, image_size: 16, train_images: 200, val_images: 300}
arms: [baseline, aim]
recipe: {steps: 100, batch_size: 32, evaluations: 5}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [4, 4, 16], update_width: 8}
protocol: {explore: {trials: 0}, blocks: 1, twins: 6, confirm: 1}
"""


def study_of(steps: int, requests: int) -> Any:
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "overhead.yaml"
        path.write_text(STUDY)
        study, _ = load_study(path, HOUSE, [f"recipe.steps={steps}"])
    blocks, rest = divmod(requests, study.protocol.twins)
    assert not rest, f"requests come in blocks of {study.protocol.twins}"
    return replace(study, protocol=replace(study.protocol, blocks=blocks, confirm=0))


def requests_of(study: Any, count: int) -> list[Any]:
    from aim_tune.protocol import Machine

    machine = Machine(study)
    return [machine.ask() for _ in range(count)]


def train(
    study: Any, request: Any, report: Callable[[dict[str, Any]], None], probe: Path, queue: int = 0
) -> float:
    """One request, both arms; the mean score. Leaves a line in the file `probe`."""
    from aim_tune.twin import train_arm

    began, cpu = time.time(), time.thread_time()
    results = [train_arm(study, request, arm, report=report).result for arm in request.arm_order()]
    line = {"began": began, "ended": time.time(), "cpu": time.thread_time() - cpu,
            "pid": os.getpid(), "queue": queue}  # fmt: skip
    with open(probe, "a") as file:
        file.write(json.dumps(line) + "\n")
    return statistics.fmean(result.val_accuracy or 0.0 for result in results)


# ---- the four ways; each runs in a process of its own


def bare(study: Any, count: int, folder: Path) -> None:
    command = [sys.executable, __file__, "--child", "bare_half", "--steps", str(study.recipe.steps),
               "--requests", str(count), "--folder", str(folder)]  # fmt: skip
    halves = [subprocess.Popen([*command, "--half", str(half)]) for half in range(SLOTS)]
    assert [half.wait() for half in halves] == [0] * SLOTS


def bare_half(study: Any, count: int, folder: Path, half: int) -> None:
    for request in requests_of(study, count)[half::SLOTS]:
        train(study, request, lambda record: None, folder / "probe", queue=half)


def probed(job: Any, study: Any, *, probe: str, report: Any, **_: Any) -> None:
    """The trial body, as twin.run_job, with a probe around it."""
    from pathlib import Path

    from aim_tune.twin import run_job

    began, cpu = time.time(), time.thread_time()
    run_job(job, study, store_root=None, report=report)
    line = {"began": began, "ended": time.time(), "cpu": time.thread_time() - cpu,
            "pid": os.getpid()}  # fmt: skip
    with open(Path(probe), "a") as file:
        file.write(json.dumps(line) + "\n")


def ours(study: Any, count: int, folder: Path) -> None:
    from aim_tune.engine import ray_tune
    from aim_tune.engine.conductor import Conductor
    from aim_tune.engine.resume import declaration
    from aim_tune.ledger import Ledger
    from aim_tune.protocol import Machine
    from aim_tune.reporting.progress import Progress
    from aim_tune.reporting.terminal import Console
    from aim_tune.tracking.mirror import Mirror

    class Info:
        digest = "overhead"

    study_folder = folder / study.name
    with Ledger(study_folder / "ledger.jsonl") as ledger, open(os.devnull, "w") as nowhere:
        ledger.append(declaration(study, Info()))  # type: ignore[arg-type]
        with ray_tune.opened(study, slots=SLOTS) as engine:
            mirror = Mirror(folder=study_folder, study=study)
            mirror.start()
            bar = Progress(study, console=Console(file=nowhere), slots=SLOTS)
            conductor = Conductor(study, Machine(study), ledger, None, [bar.event, mirror.event])
            body = functools.partial(probed, probe=str(folder / "probe"))
            engine.run(conductor, study, None, body=body)
            missing = mirror.close()
            assert not missing, missing


def tune(study: Any, count: int, folder: Path) -> None:
    from ray import tune as ray_tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    base = requests_of(study, 1)[0].to_dict()

    def trainable(config: dict[str, Any]) -> None:
        from aim_tune.spec.request import Point, Request

        request = Request.from_dict(base)
        arms = {
            a: Point(shared={"lr": config["lr"]}, addon=p.addon) for a, p in request.arms.items()
        }

        def report(record: dict[str, Any]) -> None:
            if record["event"] == "epoch":
                ray_tune.report({"val_accuracy": record["val_accuracy"]})

        score = train(study, replace(request, arms=arms), report, folder / "probe")
        ray_tune.report({"val_accuracy": score})

    callback = MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
                                    experiment_name="overhead")  # fmt: skip
    ray_tune.Tuner(
        trainable,
        param_space={"lr": ray_tune.loguniform(1e-3, 1e-1)},
        tune_config=ray_tune.TuneConfig(
            search_alg=OptunaSearch(),
            metric="val_accuracy",
            mode="max",
            num_samples=count,
            max_concurrent_trials=SLOTS,
        ),
        run_config=ray_tune.RunConfig(storage_path=str(folder / "ray"), callbacks=[callback]),
    ).fit()


def optuna(study: Any, count: int, folder: Path) -> None:
    import importlib

    library = importlib.import_module("optuna")
    from aim_tune.spec.request import Point

    base = requests_of(study, 1)[0]

    def objective(trial: Any) -> float:
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        arms = {a: Point(shared={"lr": lr}, addon=p.addon) for a, p in base.arms.items()}
        return train(study, replace(base, arms=arms), lambda record: None, folder / "probe")

    search = library.create_study(direction="maximize")
    search.optimize(objective, n_trials=count, n_jobs=SLOTS)


# ---- measuring


def run(way: str, steps: int, count: int) -> dict[str, float]:
    """One way, in a process of its own; what its probes say."""
    with tempfile.TemporaryDirectory(prefix="ao", ignore_cleanup_errors=True) as name:
        began = time.time()
        command = [sys.executable, __file__, "--child", way, "--steps", str(steps), "--requests",
                   str(count), "--folder", name]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, f"{way}: {done.stdout[-2000:]} {done.stderr[-3000:]}"
        lines = [json.loads(line) for line in (Path(name) / "probe").read_text().splitlines()]
        return {**measured(lines), "start_s": min(x["began"] for x in lines) - began,
                "wall_s": time.time() - began}  # fmt: skip


def measured(lines: list[dict[str, float]]) -> dict[str, float]:
    """Share of slot time in trainings, from the warm-up until a queue is empty."""
    start = sorted(x["ended"] for x in lines)[WARM_UP - 1]
    queues = {x.get("queue", 0) for x in lines}
    end = min(max(x["began"] for x in lines if x.get("queue", 0) == queue) for queue in queues)
    assert end > start, "too few requests: nothing is left after the warm-up"
    busy = sum(max(0.0, min(x["ended"], end) - max(x["began"], start)) for x in lines)
    later = [x["ended"] - x["began"] for x in lines if x["began"] >= start]
    got = sum(x["cpu"] for x in lines if x["began"] >= start) / sum(later)
    share = busy / (SLOTS * (end - start))
    return {
        "requests": len(lines), "request_s": statistics.fmean(later), "window_s": end - start,
        "share": share, "busy": share * got, "processes": len({x["pid"] for x in lines}),
    }  # fmt: skip


def steps_for(seconds: float, step_s: float) -> int:
    return max(5, round(seconds / step_s))


def calibrated() -> float:
    """Seconds per step of a request (one step in each arm), two processes at a time."""
    times = {steps: run("bare", steps, 12)["request_s"] for steps in (20, 80)}
    return (times[80] - times[20]) / 60


def table(seconds: float, step_s: float, count: int, ways: list[str]) -> dict[str, Any]:
    steps = steps_for(seconds, step_s)
    found: dict[str, Any] = {way: run(way, steps, count) for way in ways}
    found["bare again"] = run("bare", steps, count)
    limit = statistics.fmean(
        found[b]["share"] / found[b]["request_s"] for b in ("bare", "bare again")
    )
    for way, values in found.items():
        values["of_limit"] = values["share"] / values["request_s"] / limit
        print(
            f"{seconds:>4g} s  {way:<10} n={values['requests']:<3} request {values['request_s']:5.2f} s"
            f"  share {100 * values['share']:5.1f} %  busy {100 * values['busy']:5.1f} %"
            f"  of the limit {100 * values['of_limit']:5.1f} %"
            f"  start {values['start_s']:4.1f} s  processes {values['processes']}",
            flush=True,
        )
    return {"steps": steps, **found}


def lengths(args: argparse.Namespace) -> Iterator[tuple[float, int]]:
    for seconds in args.seconds:
        yield seconds, args.requests or (48 if seconds < 5 else 18)


def main() -> None:
    global SLOTS
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--seconds", type=float, nargs="+", default=[2.0, 10.0])
    p.add_argument("--requests", type=int, default=0, help="per way (48 of 2 s, 18 of 10 s)")
    p.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), help="bare is needed")
    p.add_argument("--json", type=Path, metavar="FILE")
    p.add_argument("--slots", type=int, default=SLOTS, help="trainings at a time")
    p.add_argument("--child", help=argparse.SUPPRESS)
    p.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--half", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child:
        more = {} if args.half is None else {"half": args.half}
        ways: dict[str, Callable[..., None]] = {
            "bare": bare, "bare_half": bare_half, "ours": ours, "tune": tune, "optuna": optuna,
        }  # fmt: skip
        ways[args.child](study_of(args.steps, args.requests), args.requests, args.folder, **more)
        return
    from aim_tune.engine.resume import versions

    SLOTS = args.slots
    os.environ["SLOTS"] = str(SLOTS)
    step_s = calibrated()
    found = {f"{s:g}": table(s, step_s, count, args.only) for s, count in lengths(args)}
    if args.json:
        whole = {"slots": SLOTS, "warm_up": WARM_UP, "seconds": found, "versions": versions()}
        args.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()
