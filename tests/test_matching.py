"""Matched by step time: what is measured, in which order, and what becomes of it. Claims about figures use
invented clocks: real step times differ from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aim_tune import matching, twin
from aim_tune.data.source import open_source
from aim_tune.errors import UserError
from aim_tune.matching import interpolated
from aim_tune.protocol import Machine, Told
from aim_tune.spec import Job, Request, Study, load_study
from aim_tune.tables import HOUSE
from aim_tune.training.step_times import WARM_UP, interleaved_step_ms

TEXT = """
name: tiny
backbone: {name: resnet8, width: 8}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [baseline, aim, time_matched, step_matched]
recipe: {steps: 6, batch_size: 8, evaluations: 2}
addon: {name: memory, memory_shape: [2, 2, 8], update_width: 16}
protocol: {blocks: 2, twins: 2, confirm: 1}
resources: {pack: arm}
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT)
    return load_study(file, HOUSE)[0]


def asked(study: Study) -> Request:
    request = Machine(study).ask()
    assert isinstance(request, Request)
    return request


def run(study: Study, request: Request, *arms: str) -> dict[str, dict[str, Any]]:
    records: list[dict[str, Any]] = []
    names = arms or tuple(request.arms)
    job = Job(request=request, arms=names, attempts=dict.fromkeys(names, 1))
    twin.run_job(job, study, store_root=None, report=records.append)
    return {r["arm"]: r["result"] for r in records if r["event"] == "training_done"}


def clock_by_parameters(models: Mapping[str, nn.Module], *args: Any, **kwargs: Any) -> Any:
    return {n: sum(p.numel() for p in m.parameters()) / 1000 for n, m in models.items()}


def test_a_study_with_measured_arms_begins_with_measuring_them(study: Study) -> None:
    request = asked(study)
    assert (request.position, request.stage, request.test) == ("match/0", "match", False)
    assert tuple(request.arms) == ("baseline", "aim", "step_matched")


def test_match_reports_real_step_times_and_trains_for_no_step(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "WIDER", (1.0, 64.0))
    monkeypatch.setitem(interleaved_step_ms.__kwdefaults__, "rounds", 2)
    found = run(study, asked(study))
    assert {r["status"] for r in found.values()} == {"ok"}, found
    assert all(r["step_ms"] > 0 and r["parameters"] > 0 for r in found.values())
    assert {r["steps"] for r in found.values()} == {0}


def test_the_baseline_is_widened_until_it_takes_as_long_as_aim(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "interleaved_step_ms", clock_by_parameters)
    found = run(study, asked(study))
    assert found["step_matched"]["parameters"] == pytest.approx(
        found["aim"]["parameters"], rel=0.02
    )
    assert "parameters" in found["step_matched"]["detail"]


def test_where_aim_is_no_slower_the_baseline_stays_as_it_is(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        matching, "interleaved_step_ms", lambda models, *a, **k: dict.fromkeys(models, 2.0)
    )
    found = run(study, asked(study))
    assert found["step_matched"]["parameters"] == found["baseline"]["parameters"]


def test_what_cannot_be_matched_fails_with_the_reason(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(models: Mapping[str, nn.Module], *args: Any, **kwargs: Any) -> dict[str, float]:
        return {name: 100.0 if name == "primary" else 1.0 for name in models}

    monkeypatch.setattr(matching, "interleaved_step_ms", slow)
    monkeypatch.setattr(matching, "WIDER", (1.0, 128.0))
    found = run(study, asked(study))
    assert {r["status"] for r in found.values()} == {"failed"}
    said = found["aim"]["detail"]
    assert "with 256 times the parameters the baseline is still faster than aim" in said


def test_a_job_that_was_half_reported_measures_all_and_reports_the_rest(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "interleaved_step_ms", clock_by_parameters)
    request = asked(study)
    whole, rest = run(study, request), run(study, request, "step_matched")
    assert rest == {"step_matched": whole["step_matched"]}


def test_a_failed_measurement_ends_the_study_with_what_to_do(study: Study) -> None:
    machine = Machine(study)
    machine.ask()
    timed = Told(score=None, step_ms=1.0, parameters=10)
    with pytest.raises(UserError, match=r"match/0 could not measure .* of aim, which time_"):
        machine.tell("match/0", {"baseline": timed, "aim": None, "step_matched": timed})


@pytest.mark.parametrize(
    ("wanted", "parameters"), [(0.5, 100), (1.0, 100), (2.0, 150), (4.0, 300), (5.0, 400)]
)
def test_widths_are_read_off_between_the_candidates(wanted: float, parameters: int) -> None:
    assert interpolated([(100, 1.0), (200, 3.0), (400, 5.0)], wanted) == parameters


def test_noise_that_makes_a_wider_network_faster_does_not_confuse() -> None:
    assert interpolated([(100, 1.0), (200, 3.0), (300, 2.5), (400, 5.0)], 4.0) == 350
    assert interpolated([(100, 1.0), (200, 3.0)], 3.1) is None


def test_steps_are_interleaved_who_goes_first_rotates_and_the_random_state_stays(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name, self.layer = name, nn.Linear(192, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            order.append(self.name)
            return self.layer(images.flatten(1))

    source = open_source(study.data, HOUSE)
    models = {"a": Named("a"), "b": Named("b")}
    before = torch.random.get_rng_state()
    times = interleaved_step_ms(
        models, source, split=source.split(1),
        recipes=dict.fromkeys("ab", study.recipe), streams=asked(study).streams,
        device=torch.device("cpu"), rounds=2,
    )  # fmt: skip
    assert order == [*"abba" * ((WARM_UP + 2) // 2), *"ab"]
    assert times.keys() == {"a", "b"}
    assert torch.equal(torch.random.get_rng_state(), before)
