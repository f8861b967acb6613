"""A written network is read again and compared; what differs, is damaged or holds a pickle is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aim_tune.addons.memory import attach
from aim_tune.artifacts import network, program
from aim_tune.artifacts.card import interval
from aim_tune.artifacts.description import Description, read_description, write_description
from aim_tune.data.info import Preparation

ABOUT = Description(
    name="net", classes=("a", "b", "c"), image_shape=(3, 16, 16),
    preparation=Preparation(scale=(0.5, 0.25, 2.0), shift=(-1.0, 0.0, 1.0), black=0.0, white=1.0),
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared() -> program.Prepared:
    """A small network with a memory, as retrain would write it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
        )  # fmt: skip
        model, _ = attach(model, memory_shape=(2, 2, 8), example_input=torch.randn(2, 3, 16, 16))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network.prepared_of(model.eval(), ABOUT)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((32, 3, 16, 16), dtype=np.float32))


@pytest.fixture(scope="module")
def written(prepared, pixels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    forms = list(network.write_forms(folder, prepared, ABOUT, pixels, network.FORMS))
    assert [(f.form, f.status) for f in forms] == [("program", "same"), ("onnx", "same")]
    return folder


def test_every_form_gives_the_scores_of_the_trained_network_for_any_number_of_images(
    written, prepared, pixels
):
    for run in (
        program.read_program(written / "program.pt2"),
        program.read_onnx(written / "model.onnx"),
    ):
        for count in (1, 5, 32):
            with torch.no_grad():
                expected = prepared(pixels[:count])
            assert torch.allclose(run(pixels[:count]), expected, atol=1e-5)


def test_pixels_are_prepared_inside(prepared, pixels):
    made = ABOUT.preparation
    scale, shift = (torch.tensor(v).view(1, 3, 1, 1) for v in (made.scale, made.shift))
    with torch.no_grad():
        assert torch.equal(prepared(pixels), prepared.network(pixels * scale + shift))


def test_a_form_that_predicts_otherwise_is_not_kept(prepared, pixels, tmp_path, monkeypatch):
    read = network.read_program
    monkeypatch.setattr(network, "read_program", lambda path: lambda x: read(path)(x).flip(1))
    (form,) = network.write_forms(tmp_path, prepared, ABOUT, pixels, ["program"])
    assert form.status == "failed"
    assert "predicts otherwise" in form.detail
    assert not list(tmp_path.iterdir())


def test_rounding_is_the_same_network_and_a_hundredth_is_not(prepared, pixels):
    with torch.no_grad():
        scores = prepared(pixels)
    assert "same class for 32 of 32" in network.compare(
        lambda x: scores * (1 + 1e-6), pixels, scores
    )
    with pytest.raises(network.Differs, match="predicts otherwise"):
        network.compare(lambda x: scores * 1.01, pixels, scores)
    with pytest.raises(network.Differs):
        network.compare(lambda x: scores * float("nan"), pixels, scores)


def test_without_onnx_the_rest_is_written_and_the_package_is_named(
    prepared, pixels, tmp_path, monkeypatch
):
    monkeypatch.setattr(network, "onnx_missing", lambda: ["onnxscript"])
    forms = list(network.write_forms(tmp_path, prepared, ABOUT, pixels, network.FORMS))
    assert [(f.form, f.status) for f in forms] == [("program", "same"), ("onnx", "left_out")]
    assert "onnxscript not installed; pip install 'aim-tune[onnx]'" in forms[1].detail
    assert {f.name for f in tmp_path.iterdir()} == {"program.pt2"}


def test_a_network_that_cannot_be_traced_says_why(pixels, tmp_path):
    class Odd(nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if images.sum().item() > 0 else images.amax((2, 3))

    odd = program.Prepared(Odd(), ABOUT.preparation)
    (form,) = network.write_forms(tmp_path, odd, ABOUT, pixels, ["program"])
    assert form.status == "failed"
    assert "torch.export cannot trace this network" in form.detail


class Bomb:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("touch bomb_went_off",))


def rewritten(source: Path, target: Path, change) -> Path:
    """A copy of an archive with records changed: change(name, content) -> [(name, content)]."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            for own, content in change(name, old.read(name)):
                new.writestr(own, content)
    return target


def hostile_weight(name: str, content: bytes):
    """The first weight as a pickle, declared as such: torch.export.load would unpickle it."""
    if name.endswith("weights_config.json"):
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return [(name, json.dumps(config))]
    if name.endswith("/weight_0"):
        buffer = io.BytesIO()
        torch.save(Bomb(), buffer)
        return [(name, buffer.getvalue())]
    return [(name, content)]


def hostile_constant(name: str, content: bytes):
    if name.endswith("constants_config.json"):
        config = json.loads(content)
        entry = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        config["config"]["bomb"] = entry
        home = name.rpartition("/")[0]
        return [(name, json.dumps(config)), (f"{home}/opaque_obj_0", pickle.dumps(Bomb()))]
    return [(name, content)]


def lying_constant(name: str, content: bytes):
    """Says it is no pickle, under a name that torch unpickles all the same."""
    return [(n, c.replace('"use_pickle": true', '"use_pickle": false') if isinstance(c, str) else c)
            for n, c in hostile_constant(name, content)]  # fmt: skip


def legacy_weights(name: str, content: bytes):
    if name.endswith("weights_config.json"):
        return [(f"{name.rpartition('/')[0]}/model.pt", pickle.dumps(Bomb())), (name, content)]
    return [(name, content)]


@pytest.mark.parametrize(
    "change",
    [hostile_weight, hostile_constant, lying_constant, legacy_weights],
    ids=lambda c: c.__name__,
)
def test_a_hostile_program_is_refused_unread(written, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = rewritten(written / "program.pt2", tmp_path / "bad.pt2", change)
    with pytest.raises(ValueError, match="is or may be a pickle"):
        program.read_program(path)
    assert not (tmp_path / "bomb_went_off").exists()


def test_the_bomb_of_these_tests_would_go_off(written, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = rewritten(written / "program.pt2", tmp_path / "bad.pt2", hostile_weight)
    with pytest.raises(Exception):  # noqa: B017  # what torch makes of it is not our business
        torch.export.load(path)
    assert (tmp_path / "bomb_went_off").exists()


def test_a_record_that_is_there_twice_is_refused(written, tmp_path):
    def twice(name, content):
        return [(name, content)] * (2 if name.endswith("weight_0") else 1)

    with pytest.warns(UserWarning, match="Duplicate name"):
        path = rewritten(written / "program.pt2", tmp_path / "bad.pt2", twice)
    with pytest.raises(ValueError, match="the same record twice"):
        program.read_program(path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_damaged_program_says_so(tmp_path, content):
    path = tmp_path / "program.pt2"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"program.pt2 is no torch.export program"):
        program.read_program(path)


def test_a_description_reads_back_and_a_damaged_one_says_what_to_do(tmp_path):
    write_description(tmp_path, ABOUT)
    assert read_description(tmp_path) == ABOUT
    (tmp_path / "model.json").write_text('{"format": "aim_tune.model/1"}')
    with pytest.raises(
        ValueError, match=r"model.json cannot be read .* retrain again with --force"
    ):
        read_description(tmp_path)


def test_the_interval_of_a_share_is_wilsons():
    assert interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)  # known value
