"""One training on several devices: two processes with gloo on the CPU, by the way that several GPUs take.

What is claimed of NCCL and real GPUs has not been run anywhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_tune import twin
from aim_tune.addons.memory.arms import MATCHED
from aim_tune.addons.memory.settings import ARMS
from aim_tune.errors import ResourceError
from aim_tune.protocol import Machine
from aim_tune.spec import Job, Point, Request, Study, load_study
from aim_tune.spec.request import STREAMS
from aim_tune.spec.study import Resources
from aim_tune.tables import HOUSE
from aim_tune.training.group import RankLost, World
from aim_tune.twin import Trained, train_arm

TWO = World(devices=("cpu", "cpu"), backend="gloo")
MLP = """
name: pair
backbone: {name: mlp, hidden: 16}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [baseline, no_update]
recipe:
  {steps: 6, batch_size: 8, evaluations: 3, optimizer: sgd, lr: 0.1, augment: [flip, crop, rotate, cutout]}
addon: {name: memory, memory_shape: [1, 1, 8], init: normal}
protocol: {blocks: 2, twins: 2, confirm: 1}
"""
RESNET = """
name: pair
backbone: {name: resnet8, width: 8}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [ARM]
recipe: {steps: 3, batch_size: 8, evaluations: 1}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 8, init: normal}
protocol: {explore: {trials: 1}, blocks: 0}
"""


def study_of(tmp_path: Path, text: str, *overrides: str) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return load_study(file, HOUSE, overrides)[0]


def request_for(study: Study, *, test: bool = False, **kwargs: Any) -> Request:
    addon = {} if study.addon is None else {k: d.to_json() for k, d in study.addon.space.items()}
    arms = {a: Point(shared={}, addon={} if a == "baseline" else addon) for a in study.arms}
    streams = {name: number for number, name in enumerate(STREAMS)}
    position = f"block/0/{'confirm' if test else 'twin'}/0"
    return Request(position=position, arms=arms, streams=streams, test=test, **kwargs)


def trained(study: Study, arm: str, world: World | None, **kwargs: Any) -> tuple[Trained, list]:
    records: list[dict[str, Any]] = []
    request = kwargs.pop("request", request_for(study))
    done = train_arm(study, request, arm, world=world, report=records.append, **kwargs)
    return done, [r for r in records if r["event"] == "epoch"]


@pytest.mark.parametrize("arm", [pytest.param("baseline", marks=pytest.mark.slow), "no_update"])
def test_without_batch_norm_two_devices_take_the_steps_of_one(tmp_path: Path, arm: str) -> None:
    study = study_of(tmp_path, MLP)
    (one, scores), (two, same) = trained(study, arm, None), trained(study, arm, TWO)
    assert (one.result.status, two.result.status, two.result.detail) == ("ok", "ok", "")
    for a, b in zip(scores, same, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["val_loss"] == pytest.approx(a["val_loss"], rel=1e-5)
        assert (b["step"], b["val_accuracy"]) == (a["step"], a["val_accuracy"])
    assert one.model is not None
    assert two.model is not None
    for (name, a), (_, b) in zip(
        one.model.named_parameters(), two.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert two.result.device.startswith("2 x cpu: ")


PLUGIN = '''
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    """Linear, with trouble in one rank at the third training step, as the setting says."""

    def __init__(self, classes, size, trouble, rank):
        super().__init__()
        self.flat, self.out = nn.Flatten(), nn.Linear(size, classes)
        self.unused = nn.Linear(2, 2)
        self.trouble, self.rank, self.calls = trouble, rank, 0

    def forward(self, images):
        self.calls += self.training
        if self.training and self.calls == 3 and dist.get_rank() == self.rank:
            if self.trouble == "fail":
                raise ValueError("a rank of bad luck")
            if self.trouble == "oom":
                raise torch.OutOfMemoryError("out of memory: 3 GiB wanted")
        if self.training and self.trouble == "dropout":
            mine = F.dropout(torch.ones(64))
            both = [torch.empty(64), torch.empty(64)]
            dist.all_gather(both, mine)
            if torch.equal(*both):
                raise ValueError("the same dropout in both ranks")
        return self.out(self.flat(images))


def net(*, classes, image_shape, trouble: str = "none", rank: int = 1):
    return Net(classes, image_shape[0] * image_shape[1] * image_shape[2], trouble, rank)


BACKBONES = {"net": net}
'''


def plugged(tmp_path: Path, trouble: str, rank: int = 1, **recipe: Any) -> Study:
    (tmp_path / "net.py").write_text(PLUGIN)
    text = MLP.replace(
        "{name: mlp, hidden: 16}", f"{{name: net, trouble: {trouble}, rank: {rank}}}"
    )
    text = text.replace("[baseline, no_update]", "[baseline]") + "plugins: [net.py]\n"
    study = study_of(tmp_path, text)
    return replace(study, recipe=replace(study.recipe, **recipe))


def followers(parent: int) -> list[int]:
    """Processes that work for a training of `parent`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = twin.FOLLOW.encode() in (folder / "cmdline").read_bytes()
            state, ppid = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if ours and state != "Z" and int(ppid) == parent:
            found.append(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def _nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="r") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield
        assert list(Path(folder).glob("aim_ranks_*")) == []
    assert not followers(os.getpid())
    assert not torch.distributed.is_initialized()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


ARMS_THAT_TRAIN = [a for a in (*ARMS, *MATCHED) if a not in ("time_matched", "step_matched")]


@pytest.mark.slow  # as all here: a start takes 8 s, when nothing else runs
@pytest.mark.parametrize("arm", ARMS_THAT_TRAIN)
def test_every_arm_trains_on_two_devices(tmp_path: Path, arm: str) -> None:
    study = study_of(tmp_path, RESNET.replace("ARM", arm))
    done, epochs = trained(study, arm, TWO)
    assert (done.result.status, done.result.steps, done.result.detail) == ("ok", 3, "")
    assert [e["step"] for e in epochs] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["carry=ema", "write=batch", "rule=residual", "pool=last"])
def test_every_way_to_write_trains_on_two_devices(tmp_path: Path, setting: str) -> None:
    study = study_of(tmp_path, RESNET.replace("ARM", "aim"), f"addon.{setting}")
    assert trained(study, "aim", TWO)[0].result.status == "ok"


@pytest.mark.slow
def test_a_compiled_training_on_two_devices_has_the_losses_of_one_that_is_not(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, MLP)
    plain = trained(study, "no_update", TWO)[1]
    compiled = trained(study_of(tmp_path, MLP, "recipe.compile=true"), "no_update", TWO)[1]
    losses = [[e["train_loss"] for e in epochs] for epochs in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_training_resumes_with_all_ranks_where_it_was(tmp_path: Path) -> None:
    """With batch norm and a carried memory: what ranks differ in must not matter."""
    text = RESNET.replace("ARM", "aim").replace("evaluations: 1", "evaluations: 3")
    study = study_of(tmp_path, text, "addon.carry=ema", "resources.checkpoint_s=0")
    store = str(tmp_path / "store")
    whole = trained(study, "aim", TWO)[0].result

    def stop(record: dict[str, Any]) -> None:
        if record["event"] == "epoch" and record["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_arm(study, request_for(study), "aim", world=TWO, store_root=store, report=stop)
    assert not followers(os.getpid())
    resumed = trained(study, "aim", TWO, store_root=store, attempt=2)[0].result
    assert resumed.detail == "resumed at step 1"
    assert resumed.weights_sha256 == whole.weights_sha256


@pytest.mark.slow
def test_only_rank_0_reads_the_sealed_examples_and_reports(tmp_path: Path) -> None:
    study = study_of(tmp_path, MLP)
    request = request_for(study, test=True)
    kept: list[str] = []
    one = trained(study, "baseline", None, request=request)[0].result
    two, epochs = trained(
        study, "baseline", TWO, request=request, keep=lambda model, result: kept.append(result.arm)
    )
    assert two.result.predictions == one.predictions is not None
    assert (len(epochs), kept) == (3, ["baseline"])


def test_all_ranks_end_where_a_loss_is_no_number(tmp_path: Path) -> None:
    study = study_of(tmp_path, MLP, "recipe.lr=1.0e+30", "recipe.schedule=constant")
    result = trained(study, "baseline", TWO)[0].result
    assert result.status == "diverged"
    assert result.val_accuracy is not None


@pytest.mark.slow
def test_all_ranks_end_by_the_clock_of_rank_0(tmp_path: Path) -> None:
    study = study_of(tmp_path, MLP, "resources.time_limit_s=0.001")
    result = trained(study, "baseline", TWO)[0].result
    assert (result.status, result.steps) == ("timeout", 1)


@pytest.mark.slow
def test_all_ranks_end_at_a_rung_and_where_patience_is_over(tmp_path: Path) -> None:
    study = study_of(tmp_path, MLP)
    request = request_for(study, stop={"baseline": ((1, 1.0),)})
    result = trained(study, "baseline", TWO, request=request)[0].result
    assert (result.status, result.steps) == ("pruned", 2)
    patient = study_of(
        tmp_path, MLP, "recipe.early_stopping_patience=1", "recipe.early_stopping_min_delta=1"
    )
    result = trained(patient, "baseline", TWO)[0].result
    assert (result.status, result.steps) == ("ok", 4)


@pytest.mark.slow
def test_unused_weights_train_and_ranks_drop_out_differently(tmp_path: Path) -> None:
    result = trained(plugged(tmp_path, "dropout"), "baseline", TWO)[0].result
    assert (result.status, result.detail) == ("ok", "")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_fails_in_one_rank_fails_the_training_with_its_reason(
    tmp_path: Path, rank: int
) -> None:
    result = trained(plugged(tmp_path, "fail", rank), "baseline", TWO)[0].result
    who = "rank 1 of 2: " if rank else ""
    assert result.status == "failed"
    assert result.detail.startswith(f"{who}ValueError: a rank of bad luck (<plug-in net.py>:")
    assert result.steps == 2


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_memory_that_runs_out_in_one_rank_is_said_as_such(tmp_path: Path, rank: int) -> None:
    done = trained(plugged(tmp_path, "oom", rank), "baseline", TWO)[0]
    assert done.result.status == "oom"
    assert "out of memory: 3 GiB wanted" in done.result.detail
    assert done.result.val_accuracy is not None  # of the pass at step 2
    assert done.model is not None


@pytest.mark.slow
def test_a_rank_that_is_killed_loses_the_job_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    study = study_of(tmp_path, MLP, "resources.checkpoint_s=0")
    store, events = str(tmp_path / "store"), []

    def report(record: dict[str, Any]) -> None:
        events.append(record["event"])
        if record["event"] == "epoch" and record["step"] == 4:
            (pid,) = followers(os.getpid())
            os.kill(pid, signal.SIGKILL)

    text = r"rank 1 of 2 \(pid \d+\) of a training on several devices was killed by signal 9.*checkpoint"
    with pytest.raises(RankLost, match=text):
        train_arm(study, request_for(study), "baseline", world=TWO, store_root=store, report=report)
    assert events == ["training_started", "epoch", "epoch"]
    result = trained(study, "baseline", TWO, store_root=store, attempt=2)[0].result
    assert (result.status, result.detail) == ("ok", "resumed at step 4")
    whole = trained(study, "baseline", TWO)[0].result
    assert result.weights_sha256 == whole.weights_sha256


def test_a_rank_that_cannot_start_is_said_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "FOLLOW", "raise SystemExit('no such code')")
    study = study_of(tmp_path, MLP)
    with pytest.raises(RankLost, match=r"ended with code 1; its last line: no such code"):
        trained(study, "baseline", TWO)


@pytest.mark.slow
def test_step_times_are_those_of_all_devices_together(tmp_path: Path) -> None:
    text = MLP.replace("[baseline, no_update]", "[baseline, aim, time_matched]")
    study = study_of(tmp_path, text)
    request = Machine(study).ask()
    assert isinstance(request, Request)
    assert request.stage == "match"
    records: list[dict[str, Any]] = []
    arms = tuple(request.arms)
    job = Job(request=request, arms=arms, attempts=dict.fromkeys(arms, 1))
    twin.run_job(job, study, store_root=None, report=records.append, world=TWO)
    results = [r["result"] for r in records if r["event"] == "training_done"]
    assert {r["status"] for r in results} == {"ok"}
    assert all(r["step_ms"] > 0 and r["device"].startswith("2 x cpu") for r in results)


@pytest.mark.slow
@pytest.mark.kills
def test_nothing_is_left_when_rank_0_is_killed(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(MLP.replace("steps: 6", "steps: 1000000"))
    code = """
    import sys
    from pathlib import Path
    from tests.test_several_devices import TWO, request_for, train_arm
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE
    from aim_tune.training import loop

    study = load_study(Path(sys.argv[1]), HOUSE)[0]
    one_step = loop._Run.one_step

    def step(run, *batch):
        if run.step == 5:
            print("trains", flush=True)
        return one_step(run, *batch)

    loop._Run.one_step = step
    train_arm(study, request_for(study), "baseline", world=TWO)
    """
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    leader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "study.yaml")],
        stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert leader.stdout is not None
    assert leader.stdout.readline() == "trains\n"
    (pid,) = followers(leader.pid)
    leader.kill()
    leader.wait()
    end = time.monotonic() + 5
    while (Path("/proc") / str(pid)).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not (Path("/proc") / str(pid)).exists()
    assert not list(tmp_path.glob("aim_ranks_*"))


def test_the_ranks_share_the_threads_of_the_trial() -> None:
    before = torch.get_num_threads()
    twin.prepare(Resources(cpu=4), TWO)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_gpus_that_are_not_there_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    text = r"resources\.gpu is 4, but this process sees 2 CUDA devices\. Set resources\.gpu to 2 or less"
    with pytest.raises(ResourceError, match=text):
        twin.prepare(Resources(gpu=4))
    assert twin.prepare(Resources(gpu=2)) == torch.device("cuda:0")
    assert twin.world_of(Resources(gpu=2)) == World(
        devices=("cuda:0", "cuda:1"), backend="cpu:gloo,cuda:nccl"
    )
    assert twin.world_of(Resources(gpu=1)) is None
