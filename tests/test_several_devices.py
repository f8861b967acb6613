"""One training on several devices: two processes with gloo on the CPU, by the way that several GPUs take.

What is claimed of NCCL and real GPUs has not been run anywhere.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aim_tune import twin
from aim_tune.spec import Job, Point, Request, Study, load_study
from aim_tune.spec.request import STREAMS
from aim_tune.tables import HOUSE
from aim_tune.training.group import RankLost, World
from aim_tune.twin import Trained, train_arm

TWO = World(devices=("cpu", "cpu"), backend="gloo")
MLP = """
name: pair
backbone: {name: mlp, hidden: 16}
data: {name: digits, image_size: 8, train_images: 40, val_images: 30}
arms: [baseline, no_update]
recipe: {steps: 6, batch_size: 8, evaluations: 3, optimizer: sgd, lr: 0.1, augment: [flip, crop, rotate, cutout]}
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


@pytest.mark.parametrize("arm", ["baseline", "no_update"])
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
