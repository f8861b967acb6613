"""Compiled trainings: the same losses, the same network, and compilation in no step time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_tune import doctor, twin
from aim_tune.data.source import Source
from aim_tune.errors import ResourceError
from aim_tune.spec import Point, Request, Study, load_study
from aim_tune.spec.study import Recipe
from aim_tune.tables import HOUSE
from aim_tune.training import compiler, loop
from aim_tune.training.compiler import check_compiler, missing_compiler
from aim_tune.training.step_times import interleaved_step_ms

EAGER = Recipe(steps=12, batch_size=16, optimizer="sgd", lr=0.05, augment=("flip",), evaluations=3)
COMPILED = EAGER.at({"compile": True})
CPU = torch.device("cpu")

has_compiler = pytest.mark.skipif(missing_compiler(False) is not None, reason="no C++ compiler")


@dataclass
class Backend:
    """A compiler that changes nothing."""

    graphs: int = 0
    now: float = 0.0
    """A clock that stands but for 1,000 seconds for each graph."""

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        self.now += 1000.0
        return graph


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    found, real = Backend(), torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda call, *, dynamic, options: real(call, dynamic=dynamic, backend=found),
    )
    yield found
    torch.compiler.reset()


def dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 3))


@has_compiler
def test_a_compiled_training_has_the_losses_and_dropout_of_an_uncompiled_one(
    train: Callable,
) -> None:
    eager, compiled = train(EAGER), train(COMPILED)
    for one, two in zip(eager.measures, compiled.measures, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, abs=1e-5)
        assert two.val_loss == pytest.approx(one.val_loss, abs=1e-5)
    assert list(compiled.model.state_dict()) == list(eager.model.state_dict())
    for name, value in eager.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_training_compiles_once_and_resumes_compiled(
    train: Callable, slot: Callable, backend: Backend
) -> None:
    whole = train(COMPILED)
    assert backend.graphs == 1  # validation and later steps compile nothing
    passes: list[Any] = []

    def stop(measure: Any) -> None:
        passes.append(measure)
        if len(passes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(COMPILED, slot=slot(1), checkpoint_s=0.0, on_measure=stop)
    resumed = train(COMPILED, slot=slot(2))
    assert backend.graphs == 3
    assert resumed.outcome.detail == "resumed at step 7"
    assert resumed.scores() == whole.scores()


def test_more_trainings_than_dynamo_keeps_are_all_compiled(
    train: Callable, backend: Backend
) -> None:
    for width in range(1, 11):
        train(Recipe(steps=1, evaluations=1, compile=True), model=dense(width))
    assert backend.graphs == 10


def test_compiling_is_neither_in_the_step_time_nor_in_the_seconds(
    train: Callable, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = loop._Run.one_step

    def step(run: loop._Run, images: Tensor, labels: Tensor) -> Tensor:
        backend.now += 1.0
        return one_step(run, images, labels)

    monkeypatch.setattr(loop._Run, "one_step", step)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: backend.now)
    for recipe in (COMPILED, replace(COMPILED, steps=2, evaluations=1)):
        outcome = train(recipe).outcome
        assert (outcome.step_ms, outcome.seconds) == (1000.0, recipe.steps - 1.0)


def test_networks_timed_together_are_all_compiled_before_a_round_counts(
    source: Source, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.time, "perf_counter", lambda: backend.now)
    models = {str(width): dense(width) for width in range(1, 11)}
    times = interleaved_step_ms(
        models,
        source,
        split=source.split(1),
        recipes=dict.fromkeys(models, COMPILED),
        streams={"order": 1, "augment": 2, "dropout": 3},
        device=CPU,
        rounds=3,
    )
    assert backend.graphs == 10
    assert set(times.values()) == {0.0}


# --- is there a compiler? ---------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(
        "name: tiny\nbackbone: mlp\ndata: digits\narms: [baseline]\nprotocol: {blocks: 0, explore: "
        "{trials: 1}}\nrecipe: {steps: 1, compile: true}\nresources: {gpu: 0}\n"
    )
    return load_study(file, HOUSE)[0]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without compilers."""
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)


def test_a_compiler_that_is_not_there_is_said_before_a_training(study: Study, bare: None) -> None:
    text = r"recipe\.compile is true, but there is no C\+\+ compiler here \(\S+\): install one, such as "
    with pytest.raises(ResourceError, match=text + r"with `apt-get install g\+\+`, or set recipe"):
        check_compiler(study)
    check_compiler(replace(study, recipe=replace(study.recipe, compile=False)))


def test_a_trial_says_it_where_the_driver_could_not(study: Study, bare: None) -> None:
    point = Point(shared={}, addon={})
    request = Request(position="block/0/twin/0", arms={"baseline": point}, streams={})
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler"):
        twin.train_arm(study, request, "baseline")


def test_the_doctor_says_it_too(study: Study, bare: None) -> None:
    (fault,) = doctor.check_compile(study)
    assert (fault.level, fault.what) == ("fault", "compile")
    assert fault.advice.endswith("or --set recipe.compile=false")
    assert list(doctor.check_compile(replace(study, recipe=Recipe(steps=1)))) == []


@pytest.mark.parametrize("gpu", [False, True])
def test_a_compiler_that_the_environment_names_is_the_one_looked_for(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "find_spec", lambda name: name)
    missing = missing_compiler(gpu, {"CC": "/no/cc", "CXX": "/no/c++"})
    assert missing is not None
    assert ("/no/cc" in missing[0]) == gpu


def test_triton_and_the_headers_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    assert missing_compiler(True) == (
        "Triton is missing here", "pip install triton (torch for CUDA brings it)",
    )  # fmt: skip
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name)
    missing = missing_compiler(False, {}, include=str(tmp_path))
    assert missing is not None
    assert missing[0].startswith("Python's headers are missing here")
    (tmp_path / "Python.h").touch()
    assert missing_compiler(False, {}, include=str(tmp_path)) is None
