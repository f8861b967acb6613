"""The trial body on real digits: pairing, failures that stay with their arm, resume, sealed labels."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_tune import twin
from aim_tune.addons.memory import MemoryAlbum
from aim_tune.addons.pictures import MemoryPictures
from aim_tune.errors import DataError, ResourceError
from aim_tune.ledger import unpack_ints
from aim_tune.spec import Component, Job, Point, Request, Study, load_study
from aim_tune.spec.request import STREAMS
from aim_tune.tables import HOUSE

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
recipe: {steps: 6, batch_size: 8, evaluations: 2}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 4}
protocol: {blocks: 2, twins: 2, confirm: 1}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT)
    return load_study(file, HOUSE)[0]


def request_for(study: Study, *, lr: float = 0.01, test: bool = False) -> Request:
    assert study.addon is not None
    addon = {name: domain.to_json() for name, domain in study.addon.space.items()}
    arms = {
        arm: Point(shared={"lr": lr}, addon={} if arm == "baseline" else addon)
        for arm in study.arms
    }
    streams = {name: number for number, name in enumerate(STREAMS)}
    position = f"block/0/{'confirm' if test else 'twin'}/0"
    return Request(position=position, arms=arms, streams=streams, test=test)


def run(study: Study, request: Request, **kwargs: Any) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    arms = request.arm_order()
    job = Job(request=request, arms=arms, attempts=dict.fromkeys(arms, 1))
    twin.run_job(job, study, **{"store_root": None, "report": records.append, **kwargs})
    return records


def results(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["arm"]: r["result"] for r in records if r["event"] == "training_done"}


SAME = ("status", "steps", "val_accuracy", "val_best", "weights_sha256", "predictions")


def sameness(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {arm: [result[k] for k in SAME] for arm, result in results(records).items()}


def test_every_arm_starts_measures_and_ends_in_the_order_of_its_turn(study: Study) -> None:
    request = replace(request_for(study), turn=1)
    records = run(study, request)
    told = [(r["arm"], r["event"]) for r in records]
    once = ["training_started", "epoch", "epoch", "training_done"]
    assert told == [(arm, event) for arm in ("aim", "frozen", "baseline") for event in once]
    assert {r["result"]["status"] for r in records if r["event"] == "training_done"} == {"ok"}
    assert [r["step"] for r in records if r["event"] == "epoch"] == [3, 6] * 3


def test_the_first_confirm_run_of_the_addon_shows_what_its_memory_learned(study: Study) -> None:
    request = request_for(study, test=True)
    first, again = results(run(study, request)), results(run(study, request))
    assert [arm for arm, result in first.items() if result["memory"]] == ["aim"]
    assert first["aim"]["memory"] == again["aim"]["memory"]
    shown = MemoryPictures.from_dict(first["aim"]["memory"])
    assert shown.start.shape == (8, 2, 2)
    assert shown.figures()["change"] > 0
    assert len(shown.written) == len(shown.labels) == 4
    for position in ("block/0/confirm/1", "block/1/confirm/0"):
        later = results(run(study, replace(request, position=position)))
        assert not any(result["memory"] for result in later.values())
    assert not any(r["memory"] for r in results(run(study, request_for(study))).values())


def test_an_album_that_fails_costs_no_training(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no film")

    monkeypatch.setattr(MemoryAlbum, "finish", fail)
    with pytest.warns(UserWarning, match="no pictures of aim: RuntimeError: no film"):
        done = results(run(study, request_for(study, test=True)))
    assert (done["aim"]["status"], done["aim"]["memory"]) == ("ok", None)


def test_the_order_of_the_arms_and_what_ran_before_change_no_bit(study: Study) -> None:
    first = run(study, request_for(study, test=True))
    torch.manual_seed(99)
    torch.set_default_dtype(torch.float64)  # what a careless plug-in might leave behind
    again = run(study, replace(request_for(study, test=True), turn=2))
    assert sameness(first) == sameness(again)


def test_the_same_job_twice_gives_the_same_bits_and_says_its_attempt(study: Study) -> None:
    job = Job(request=request_for(study), arms=("baseline",), attempts={"baseline": 2})
    one: list[dict[str, Any]] = []
    two: list[dict[str, Any]] = []
    twin.run_job(job, study, store_root=None, report=one.append)
    twin.run_job(job, study, store_root=None, report=two.append)
    assert sameness(one) == sameness(two)
    assert {r["attempt"] for r in one} == {2}


def test_only_confirm_pairs_predict_the_sealed_examples(study: Study) -> None:
    assert {r["predictions"] for r in results(run(study, request_for(study))).values()} == {None}
    for result in results(run(study, request_for(study, test=True))).values():
        classes = unpack_ints(result["predictions"])
        assert classes.shape == (797,)
        assert set(classes) <= set(range(10))


def test_an_arm_that_fails_says_why_and_its_siblings_go_on(study: Study) -> None:
    request = request_for(study)
    broken = Point(
        shared={"lr": 0.01}, addon={**request.arms["aim"].addon, "memory_shape": [64, 64, 8]}
    )
    request = replace(request, arms={**request.arms, "aim": broken})
    found = results(run(study, request))
    assert found["baseline"]["status"] == found["frozen"]["status"] == "ok"
    assert found["aim"]["status"] == "failed"
    assert found["aim"]["detail"].startswith("AttachError: ")
    assert found["aim"]["allotted_steps"] == 6
    assert found["aim"]["val_accuracy"] is None


def test_a_diverged_arm_keeps_what_it_reached_and_still_predicts(study: Study) -> None:
    study = replace(study, recipe=replace(study.recipe, optimizer="sgd", schedule="constant"))
    records = run(study, request_for(study, lr=1e30, test=True))
    assert {r["status"] for r in results(records).values()} == {"diverged"}
    assert all(r["predictions"] for r in results(records).values())


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity "
                            "of 79.11 GiB of which 1.06 GiB is free.\nSee the documentation"),
     MemoryError("Unable to allocate 8.00 EiB for an array"),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 EB")],
)  # fmt: skip
def test_running_out_of_memory_is_oom(
    study: Study, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(twin, "build_arm", build)
    found = results(run(study, request_for(study)))
    assert {r["status"] for r in found.values()} == {"oom"}
    for figure in re.findall(r"[\d.]+ [GE]i?B", str(error)):
        assert all(figure in r["detail"] for r in found.values())
    assert all(r["device"] and r["node"] for r in found.values())


def test_data_that_cannot_be_opened_loses_the_whole_job(study: Study, tmp_path: Path) -> None:
    settings = {**HOUSE.data["cifar10"].defaults(), "root": str(tmp_path)}
    study = replace(study, data=Component(name="cifar10", settings=settings))
    with pytest.raises(DataError):
        run(study, request_for(study))


def test_a_gpu_that_this_process_does_not_see_is_said(study: Study) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    study = replace(study, resources=replace(study.resources, gpu=1))
    with pytest.raises(ResourceError, match=r"resources\.gpu is 1, but this process sees no CUDA"):
        run(study, request_for(study))


def test_an_attempt_goes_on_from_the_checkpoint_and_ends_with_the_same_bits(
    study: Study, tmp_path: Path
) -> None:
    study = replace(study, arms=("aim",), resources=replace(study.resources, checkpoint_s=0.0))
    request = request_for(study)
    whole = run(study, request)
    store = tmp_path / "checkpoints"

    class Killed(BaseException):
        pass

    def die(record: dict[str, Any]) -> None:
        if record["event"] == "epoch" and record["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        run(study, request, store_root=str(store), report=die)
    assert any(p.is_file() for p in store.rglob("*"))
    job = Job(request=request, arms=("aim",), attempts={"aim": 2})
    rest: list[dict[str, Any]] = []
    twin.run_job(job, study, store_root=str(store), report=rest.append)
    assert sameness(rest) == sameness(whole)
    assert not any(p.is_file() for p in store.rglob("*"))  # dropped with the result


def test_the_result_says_what_it_took(study: Study) -> None:
    found = results(run(study, request_for(study)))
    for result in found.values():
        assert result["allotted_steps"] == result["steps"] == 6
        assert result["parameters"] >= result["trainable"] > 0
        assert result["flops"] > 0
        assert result["device"].startswith("cpu: ")
        assert len(result["weights_sha256"]) == 64
    assert (
        found["aim"]["parameters"] > found["frozen"]["trainable"] > found["baseline"]["trainable"]
    )


def test_train_arm_also_gives_the_network(study: Study) -> None:
    trained = twin.train_arm(study, request_for(study), "aim")
    assert trained.result.status == "ok"
    assert trained.model is not None
    assert trained.model(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


def test_a_worker_that_imports_the_twin_gets_no_ray_optuna_mlflow_or_labels() -> None:
    code = (
        "import sys, aim_tune.twin; "
        "print([m for m in ('ray', 'optuna', 'mlflow', 'aim_tune.data.sealed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
