"""The plan of any network from the command line."""

from __future__ import annotations

import re

import pytest

from aim_tune.addons import ADDONS
from aim_tune.describe import main


def test_it_prints_the_published_plan_with_its_pinned_counts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["keras_resnet50", "--setting", "stem_stride=1", "--preset", "published"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "26,673,380 parameters, 26,619,876 trainable; without memory 23,792,612" in text
    assert "memory 7x7x1024 (50176 numbers), arm aim, write sample" in text
    assert "stage5.2.conv1 (Conv2d, 14x14): 2048 + 256 channels, the second memory" in text


def test_it_describes_torchvisions_resnet50_as_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["resnet50", "--preset", "published"]) == 0
    text = capsys.readouterr().out
    assert "16 readers:" in text
    assert "3 update points:" in text


def test_it_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resnet51"]) == 2
    assert "did you mean 'resnet" in capsys.readouterr().err
    assert main(["resnet18", "--image", "32", "--memory", "7", "7", "1024"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert main(["resnet50", "--setting", "stemstride=1"]) == 2
    assert "unknown setting of resnet50 'stemstride'" in capsys.readouterr().err


def test_the_published_preset_names_the_counts_of_the_articles_own_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["resnet50", "--preset", "published"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "keras_resnet50 --setting stem_stride=1" in line
    assert "26,673,380 parameters, 26,619,876 trainable; without memory 23,792,612" in line
    assert main(["resnet50", "--preset", "described"]) == 0
    assert "25,996,580 parameters, 25,942,948 trainable" in capsys.readouterr().out


def test_the_described_preset_takes_the_memory_that_the_text_gives_a_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["vgg16", "--preset", "described"]) == 0
    text = capsys.readouterr().out
    assert "memory 14x14x256 (50176 numbers)" in text
    assert "139,620,148 parameters" in text


def test_every_arm_of_a_study_is_listed_with_what_it_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["resnet8", "--image", "16", "--classes", "10", "--arms"]
    assert main(argv) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for arm in ("baseline", *ADDONS["memory"].arms):
        assert arm in lines
    to_aim = [float(x) for x in re.findall(r"([+-][\d.]+) %", lines["wide"])]
    assert abs(to_aim[0]) <= 1
    to_aim = [float(x) for x in re.findall(r"([+-][\d.]+) %", lines["flop_matched"])]
    assert abs(to_aim[1]) <= 1
    assert "to match step_ms of aim" in lines["step_matched"]
    assert "to match seconds of aim" in lines["time_matched"]


def test_arms_that_cannot_be_built_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["mlp", "--image", "8", "--memory", "1", "1", "8", "--arms"]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "constant       cannot be built: arm constant asks what position alone does" in text


def test_networks_of_timm_and_readers_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    readers = ["--readers", "layer2.0.conv1", "layer4.0.conv1"]
    assert main(["timm:resnet10t", "--image", "64", "--memory", "2", "2", "64", *readers]) == 0
    text = capsys.readouterr().out
    assert "timm:resnet10t, 100 classes, images 3x64x64, preset fast" in text
    assert "2 readers:" in text
    assert main(["timm:resnet10x"]) == 2
    assert (
        "unknown network of timm 'resnet10x'; did you mean 'resnet10t'" in capsys.readouterr().err
    )
    assert main(["timm:resnet10t", "--setting", "wings=2"]) == 2
    assert "timm cannot build resnet10t" in capsys.readouterr().err
