"""A small house of rows, and a way to load a study from a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aim_tune.spec import AddonEntry, Catalog, Entry, Setting, Study, load_study

NOTHING = "aim_tune.spec.values:canonical"  # rows are never built here

SMALL = """\
name: small
backbone: {name: tiny}
data: {name: dots}
recipe: {steps: 10}
addon: {name: memory}
"""


@pytest.fixture
def house() -> Catalog:
    count = Setting(kind="int", default=8, low=1, high=64)
    return Catalog(
        backbones={
            "tiny": Entry(build=NOTHING, doc="", settings={"width": count}),
            "tower": Entry(build=NOTHING, doc=""),
        },
        data={
            "dots": Entry(
                build=NOTHING,
                doc="",
                settings={
                    "train_images": Setting(kind="int", default=None, low=1, optional=True),
                    "noise_sd": Setting(kind="float", default=0.4, low=0),
                },
            ),
            "folder": Entry(
                build=NOTHING,
                doc="",
                settings={
                    "root": Setting(kind="path"),
                    "cache": Setting(kind="path", default="cache"),
                    "batches": Setting(kind="shape", default=(1, 2), low=1, high=5),
                },
            ),
        },
        addons={
            "memory": AddonEntry(
                build=NOTHING,
                doc="",
                settings={
                    "memory_shape": Setting(kind="shape", default=(4, 4, 16), length=3, high=4096),
                    "kernel_size": Setting(kind="int", default=3, options=(1, 3, 5)),
                    "activation": Setting(kind="str", default="relu", options=("relu", "tanh")),
                    "update_width": Setting(kind="int", default=16, low=1),
                    "decay": Setting(kind="float", default=0.5, low=0, high=1),
                },
                arms={
                    "aim": "learned",
                    "frozen": "random",
                    "no_update": "learned, never written",
                    "time_matched": "the backbone for as many seconds",
                    "half_size": "smaller images",
                },
                primary="aim",
                placebo="frozen",
                matched={"time_matched": "seconds"},
                confounds={"half_size": "half the resolution"},
            )
        },
    )


@pytest.fixture
def small() -> str:
    return SMALL


@pytest.fixture
def load(house: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """load(text, *overrides) -> Study; the file is study.yaml in the current folder."""
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str) -> Study:
        path = Path("study.yaml")
        path.write_text(text, encoding="utf-8")
        return load_study(path, house, overrides)[0]

    return load
