"""The plan of any network from the command line."""

from __future__ import annotations

import pytest

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
