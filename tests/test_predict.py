"""The verb predict reads what retrain wrote, from a folder or the registry, and says what it sees."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aim_tune import export, predict, retrain
from aim_tune.artifacts.description import read_description
from aim_tune.artifacts.network import load_model


@pytest.fixture(scope="module")
def home(tiny_results, tmp_path_factory) -> Path:
    """A folder with a trained network, and a registry with the same."""
    home = tmp_path_factory.mktemp("predict")
    assert export.main([str(tiny_results), "--arm", "aim", "-o", str(home / "best.yaml")]) == 0
    options = ["--forms", "weights,program", "--register", "net", "--out", str(home / "net"),
               "--steps", "40", "--tracking-uri", f"sqlite:///{home}/mlflow.db"]  # fmt: skip
    assert retrain.main([str(home / "best.yaml"), *options]) == 0
    return home


def told(capsys, *args: str) -> list[dict]:
    capsys.readouterr()
    assert predict.main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_probabilities_are_those_of_the_trained_network(home, capsys):
    rows = told(capsys, str(home / "net"), str(home / "net" / "examples"))
    about, model = read_description(home / "net"), load_model(home / "net")
    made = about.preparation
    assert len(rows) == 8
    for row in rows:
        image = np.asarray(Image.open(home / "net" / "examples" / row["file"])) / 255.0 * 2 - 1
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        scale, shift = (torch.tensor(v).view(1, -1, 1, 1) for v in (made.scale, made.shift))
        with torch.inference_mode():
            shares = model(pixels * scale + shift).softmax(1)[0]
        assert row["predicted"] == about.classes[int(shares.argmax())]
        assert row["probability"] == pytest.approx(float(shares.max()), abs=1e-5)


def test_the_registry_gives_the_same_as_the_folder(home, capsys):
    images = str(home / "net" / "examples")
    uri = ["--tracking-uri", f"sqlite:///{home}/mlflow.db"]
    assert told(capsys, "models:/net/1", images, *uri) == told(capsys, str(home / "net"), images)


def test_table_and_csv_name_file_class_and_probability(home, capsys):
    assert predict.main([str(home / "net"), str(home / "net" / "examples")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["file", "class", "probability"]
    assert table[-1].endswith("of 8 lie in a folder named like the predicted class.")
    assert predict.main([str(home / "net"), str(home / "net" / "examples"), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["file"] for r in rows] == [line.split()[0] for line in table[1:-1]]


def test_images_of_any_size_and_kind_are_taken(home, tmp_path, capsys):
    Image.new("L", (50, 20), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (7, 90), (10, 20, 30, 40)).save(tmp_path / "clear.png")
    assert [r["file"] for r in told(capsys, str(home / "net"), str(tmp_path))] == [
        "clear.png",
        "grey.png",
    ]
    assert len(told(capsys, str(home / "net"), str(tmp_path / "grey.png"))) == 1


@pytest.mark.parametrize(
    ("model", "images", "text"),
    [("nothing", "net/examples", "no network in"), ("net", "nothing", "is not there; give a folder"),
     ("net", "empty", "holds no image"), ("net", "bad", "cannot be read; replace or remove them"),
     ("models:/net/9", "net/examples", "no model models:/net/9"),
     ("models:/other/1", "net/examples", "no model models:/other/1")],
)  # fmt: skip
def test_wrong_input_is_named(home, tmp_path, model, images, text, capsys):
    (home / "empty").mkdir(exist_ok=True)
    (home / "bad").mkdir(exist_ok=True)
    (home / "bad" / "half.png").write_bytes(
        (next((home / "net/examples").rglob("*.png"))).read_bytes()[:90]
    )
    model = model if model.startswith("models:") else str(home / model)
    uri = ["--tracking-uri", f"sqlite:///{home}/mlflow.db"]
    assert predict.main([model, str(home / images), *uri]) == 2
    assert text in capsys.readouterr().err


def test_a_folder_without_a_program_says_how_to_write_it(home, tmp_path, capsys):
    assert retrain.main([str(home / "best.yaml"), "--forms", "weights", "--tracking", "off",
                         "--out", str(tmp_path / "net")]) == 0  # fmt: skip
    assert predict.main([str(tmp_path / "net"), str(home / "net" / "examples")]) == 2
    assert "--forms weights,program" in capsys.readouterr().err
