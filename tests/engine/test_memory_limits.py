"""A machine that runs out of memory, for real: Ray's memory monitor ends a training, or a limit does."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray import cloudpickle

from aim_tune.spec.request import Job

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests

HUNGRY = ("block/0/twin/0", "aim")
PIECE = 64 * 2**20
GIB = 2**30


def hungry(job: Job, study: Any, *, body: Callable[..., None], **kwargs: Any) -> None:
    """One arm takes memory until it is ended, 8 GiB at most; the others are as they are."""
    for arm in job.arms:
        if (job.request.position, arm) == HUNGRY:
            head = {"position": job.request.position, "arm": arm, "attempt": job.attempts[arm]}
            where = {"node": "n", "device": "d", "pid": 1}
            kwargs["report"]({"event": "training_started", **head, **where})
            taken = []
            for _ in range(8 * GIB // PIECE):
                taken.append(bytearray(b"x") * PIECE)
                time.sleep(0.02)
        body(job.only([arm]), study, **kwargs)


@pytest.mark.slow
@pytest.mark.kills
def test_a_training_that_rays_memory_monitor_ends_is_recognised_and_tried_three_times(
    lab: Any, no_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray may end others that run beside it (it ends the youngest first): they are tried again and lose
    nothing."""
    from aim_tune.engine import in_process, ray_tune

    study = lab.study(trials=0, blocks=1, twins=3)
    conductor, plain = lab.conduct(study)
    with in_process.opened(study) as engine:
        engine.run(conductor, study, None, body=lab.simulated)
    memory = psutil.virtual_memory()
    if memory.available < 6 * GIB:
        pytest.skip("needs 6 GiB of free memory, to fill half of it")
    full = (memory.total - memory.available + 3 * GIB) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{full:.3f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    conductor, ledger = lab.conduct(study)
    with ray_tune.opened(study, slots=2) as engine:
        engine.run(conductor, study, None, body=functools.partial(hungry, body=lab.simulated))
    lost = [r for r in ledger.records if r["event"] == "job_lost"]
    mine = [r for r in lost if r["position"] == HUNGRY[0] and HUNGRY[1] in r["arms"]]
    assert len(mine) == 3
    said = r"Ray ended the worker process: its machine ran out of memory \(.*B used / .*B\)"
    for record in lost:
        assert re.fullmatch(said, record["reason"]), record
    failed = ledger.history.trainings[HUNGRY]
    assert (failed.status, failed.attempts, failed.score) == ("failed", 3, None)
    assert "lost 3 times; at last: Ray ended the worker process" in failed.result.detail
    others = lab.outcome(ledger.history)
    assert {k: v[2] for k, v in others.items() if k != HUNGRY} == {
        k: v[2] for k, v in lab.outcome(plain.history).items() if k != HUNGRY
    }


LIMITED = """
import json, resource, sys
from pathlib import Path
from aim_tune import twin
from aim_tune.spec import Job, Request, load_study
from aim_tune.tables import HOUSE

study, _ = load_study(Path(sys.argv[1]), HOUSE)
request = Request.from_dict(json.loads(sys.argv[2]))
real = twin.build_arm

def build(study, catalog, arm, *args, **kwargs):
    if arm == "aim":
        twin.torch.ones(4 * 2**28)  # 4 GiB
    return real(study, catalog, arm, *args, **kwargs)

twin.build_arm = build
twin.train_arm(study, request, "baseline")  # libraries and data are loaded
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
records = []
job = Job(request=request, arms=request.arm_order(), attempts=dict.fromkeys(request.arms, 1))
twin.run_job(job, study, store_root=None, report=records.append)
print(json.dumps([r["result"] for r in records if r["event"] == "training_done"]))
"""
TEXT = """
name: tiny
backbone: {name: mlp}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [baseline, aim, frozen]
recipe: {steps: 6, batch_size: 8, evaluations: 2}
addon: {name: memory, memory_shape: [2, 2, 8]}
protocol: {explore: {trials: 0}, blocks: 1, twins: 1, confirm: 1}
"""


def test_a_training_that_meets_the_limit_of_its_process_is_oom_and_its_siblings_go_on(
    tmp_path: Path,
) -> None:
    """RLIMIT_AS, as batch systems set it: the allocation itself fails."""
    from aim_tune.protocol import Machine
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    file = tmp_path / "tiny.yaml"
    file.write_text(TEXT)
    request = Machine(load_study(file, HOUSE)[0]).ask()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file), json.dumps(request.to_dict())],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {r["arm"]: r for r in json.loads(done.stdout.splitlines()[-1])}
    assert {arm: r["status"] for arm, r in found.items()} == {
        "baseline": "ok", "aim": "oom", "frozen": "ok",
    }  # fmt: skip
    assert "can't allocate memory: you tried to allocate 4294967296 bytes" in found["aim"]["detail"]
