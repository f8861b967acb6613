"""Trials that share a GPU are packed by what they were seen to take, never into each other's memory."""

from __future__ import annotations

from typing import Any

import pytest

from aim_tune.engine.packing import Need, fitting, per_gpu, said
from aim_tune.errors import ResourceError


def need(peak_mib: float, total_mib: float = 24_000.0) -> Need:
    return Need(peak_mib=peak_mib, total_mib=total_mib, device="NVIDIA T")


@pytest.mark.parametrize(
    ("gpu", "peak_mib", "packed"),
    [
        (0.25, 5_000.0, 4),  # 4 x 5,600 <= 0.95 x 24,000
        (0.25, 5_200.0, 3),  # 4 x 5,800 is too much
        (0.1, 1_000.0, 10),
        (0.1, 10_900.0, 1),
        (0.5, 100.0, 2),  # never more than was asked for
    ],
)
def test_as_many_are_packed_as_fit_the_memory_and_no_more_than_asked(
    gpu: float, peak_mib: float, packed: int
) -> None:
    assert per_gpu(fitting(gpu, need(peak_mib))) == packed


def test_a_training_that_no_gpu_holds_is_refused_with_the_figures() -> None:
    with pytest.raises(ResourceError, match=r"takes 23,000 MiB of NVIDIA T, which has 24,000 MiB"):
        fitting(0.5, need(23_000.0))


def test_fewer_than_asked_is_said_and_as_asked_is_not() -> None:
    assert said(0.25, 0.25, need(100.0)) == ""
    text = said(0.25, fitting(0.25, need(5_200.0)), need(5_200.0))
    assert "would put 4 trainings on a NVIDIA T" in text
    assert "packing 3 instead" in text


@pytest.mark.parametrize(("peak_mib", "slots"), [(100.0, 8), (10_000.0, 4)])
def test_the_engine_runs_fewer_trials_where_they_would_not_fit(
    lab: Any, monkeypatch: pytest.MonkeyPatch, peak_mib: float, slots: int
) -> None:
    from aim_tune.engine import ray_tune

    monkeypatch.setattr(ray_tune, "measured", lambda study: need(peak_mib))
    study = lab.study()
    study = lab.replace(study, resources=lab.replace(study.resources, gpu=0.25))
    texts: list[str] = []
    engine = ray_tune.packed(study, None, 8, texts.append)  # two GPUs of four trials each
    assert engine.slots == slots
    assert bool(texts) == (slots < 8)


def test_whole_gpus_need_no_measuring(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from aim_tune.engine import ray_tune

    monkeypatch.setattr(ray_tune, "measured", None)
    study = lab.study()
    study = lab.replace(study, resources=lab.replace(study.resources, gpu=1.0))
    assert ray_tune.packed(study, None, 3).slots == 3
