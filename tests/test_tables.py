"""The house catalog is complete, torch-free and loadable."""

from __future__ import annotations

import subprocess
import sys

import pytest

from aim_tune.addons import ADDONS
from aim_tune.tables import HOUSE


def test_the_catalog_holds_the_house_rows() -> None:
    assert {"resnet8", "resnet20", "resnet56", "resnet18", "resnet34", "resnet50", "vgg16_bn",
            "mlp", "small_cnn"} <= set(HOUSE.backbones)  # fmt: skip
    assert {"digits", "cifar10", "mnist", "image_folder"} <= set(HOUSE.data)
    assert set(HOUSE.addons) == {"memory", "published_memory"}


def test_importing_the_catalog_needs_no_torch() -> None:
    code = "import sys, aim_tune.tables; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("table", ["backbones", "data", "addons"])
def test_every_builder_of_a_table_can_be_imported(table: str) -> None:
    assert all(callable(row.load()) for row in getattr(HOUSE, table).values())


def test_memory_names_its_arms_and_its_placebo() -> None:
    memory = ADDONS["memory"]
    assert list(memory.arms)[:3] == ["aim", "frozen", "no_update"]
    assert (memory.primary, memory.placebo) == ("aim", "frozen")
