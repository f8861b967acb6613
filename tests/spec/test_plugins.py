"""A user's own file adds rows; what is wrong with one is said with its line."""

from __future__ import annotations

import pickle
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import REQUIRED, Catalog, Plugin, Setting, Study, dump, load_plugins, load_study
from aim_tune.spec.plugins import SPLIT_SETTINGS, module_of, sha256

Load = Callable[..., Study]

LAB = """\
from pathlib import Path
from typing import Literal

def net(*, classes, image_shape, width: int = 4, kind: Literal["a", "b"] = "a", drop=0.5,
        bias=True, sizes=(1, 2), names: list[str], cap: float | None = None, weights: Path = "w"):
    "A net."
    return ("net", classes, image_shape, width)

def dots(*, noise=0.1):
    return noise

class Boost:
    "Boosts."
    arms = {"boost": "yes", "sham": "no"}
    primary, placebo = "boost", "sham"

    @staticmethod
    def build(backbone, *, arm, image_shape, seed, gain: float = 2.0):
        return (backbone, arm, gain)

BACKBONES = {"net": net}
DATASETS = {"own": dots}
ADDONS = {"boost": Boost}
"""

STUDY = """\
name: lab
backbone: {name: net, width: 6, names: [x]}
data: {name: own, val_images: 5}
recipe: {steps: 1}
addon: {name: boost, gain: {uniform: [1, 3]}}
plugins: [lab.py]
"""


def plugin(source: str, path: str = "lab.py") -> Plugin:
    source = textwrap.dedent(source)
    return Plugin(path=path, sha256=sha256(source), source=source)


def test_settings_are_read_off_the_keyword_only_parameters() -> None:
    row = load_plugins([plugin(LAB)]).backbones["net"]
    assert row.doc == "A net."
    assert row.settings == {
        "width": Setting(kind="int", default=4),
        "kind": Setting(kind="str", default="a", options=("a", "b")),
        "drop": Setting(kind="float", default=0.5),
        "bias": Setting(kind="bool", default=True),
        "sizes": Setting(kind="shape", default=[1, 2]),
        "names": Setting(kind="names", default=REQUIRED),
        "cap": Setting(kind="float", default=None, optional=True),
        "weights": Setting(kind="path", default="w"),
    }
    assert row.load()(classes=3, image_shape=(1, 2, 2), width=9, names=[]) == (
        "net",
        3,
        (1, 2, 2),
        9,
    )


def test_data_sets_of_a_plugin_can_be_split_like_any_other() -> None:
    row = load_plugins([plugin(LAB)]).data["own"]
    assert row.settings == {**SPLIT_SETTINGS, "noise": Setting(kind="float", default=0.1)}


def test_an_addon_brings_its_arms() -> None:
    row = load_plugins([plugin(LAB)]).addons["boost"]
    assert (dict(row.arms), row.primary, row.placebo) == (
        {"boost": "yes", "sham": "no"}, "boost", "sham",
    )  # fmt: skip
    assert row.settings == {"gain": Setting(kind="float", default=2.0)}
    assert row.load()("b", arm="boost", image_shape=(1, 2, 2), seed=0) == ("b", "boost", 2.0)


def test_a_plugin_runs_once_and_its_classes_pickle_by_reference() -> None:
    source = "import random\nTAG = random.random()\nclass Net:\n    pass\nBACKBONES = {}\n"
    first, second = module_of(plugin(source)), module_of(plugin(source, "elsewhere.py"))
    assert first.TAG == second.TAG
    assert type(pickle.loads(pickle.dumps(first.Net()))) is first.Net


def test_rows_may_be_entries_of_their_own() -> None:
    source = """
    from aim_tune.spec import Entry, Setting
    DATASETS = {"x": Entry(build=print, doc="mine", settings={"n": Setting(kind="int", low=3)})}
    """
    assert load_plugins([plugin(source)]).data["x"].settings == {"n": Setting(kind="int", low=3)}


def test_a_study_uses_the_rows_of_its_plugins(load: Load, house: Catalog, tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    study = load(STUDY)
    assert study.arms == ("baseline", "boost", "sham")
    assert study.backbone.settings["weights"] == str(tmp_path / "w")
    assert study.plugins == (Plugin(path="lab.py", sha256=sha256(LAB), source=LAB),)
    catalog = load_study(Path("study.yaml"), house)[1]
    assert set(catalog.backbones) == {"tiny", "tower", "net"}


def test_a_resolved_study_needs_the_plugin_file_no_longer(load: Load, tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    study = load(STUDY)
    (tmp_path / "lab.py").unlink()
    resolved = dump(study.to_dict())
    assert load(resolved) == study
    with pytest.raises(StudyError, match="the text of the plug-in was changed: its sha256 differs"):
        load(resolved.replace("gain: float = 2.0", "gain: float = 3.0"))


def test_a_changed_plugin_is_another_study(load: Load, tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    first = load(STUDY).study_hash
    (tmp_path / "lab.py").write_text(LAB + "# changed\n")
    assert load(STUDY).study_hash != first


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("x = 1\ny = 1 / 0\n", "lab.py:2: plugins: the plug-in does not load: ZeroDivisionError"),
        ("def f(:\n", "lab.py:1: plugins: the plug-in does not load: SyntaxError: invalid syntax"),
        ("import nowhere_at_all\n", "lab.py:1: .*ModuleNotFoundError: No module named"),
        ("x = 1\n", "has none of the tables BACKBONES, DATASETS, ADDONS"),
        ("BACKBONES = [1]\n", r"BACKBONES must be a dict of name -> function, found \[1\]"),
        ("BACKBONES = {'n': 3}\n", r"BACKBONES\['n'\] must be a function, found 3"),
        (
            "def f(*, classes): pass\nBACKBONES = {'n': f}\n",
            r"must take \(\*, classes, image_shape, your_setting=default\), found \(\*, classes\)",
        ),
        ("def f(noise=1): pass\nDATASETS = {'n': f}\n", r"must take \(\*, your_setting=default\)"),
        (
            "def f(*, noise={}): pass\nDATASETS = {'n': f}\n",
            "the setting 'noise' needs a default or an annotation of a kind known here: int, float",
        ),
        ("class A: pass\nADDONS = {'a': A}\n", "needs arms = .* without baseline, found None"),
        (
            "class A:\n  arms = {'x': ''}\n  primary = 'y'\nADDONS = {'a': A}\n",
            r"needs primary = one of \['x'\], found 'y'",
        ),
        (
            "class A:\n  arms = {'x': ''}\n  primary = 'x'\n  placebo = 'y'\nADDONS = {'a': A}\n",
            r"needs placebo = None or one of \['x'\], found 'y'",
        ),
        (
            "class A:\n  arms = {'x': ''}\n  primary = 'x'\nADDONS = {'a': A}\n",
            r"needs build\(backbone, \*, arm, image_shape, seed, \*\*settings\)",
        ),
        (
            "class A:\n  arms = {'x': ''}\n  primary = 'x'\n  def build(backbone, arm): pass\n"
            "ADDONS = {'a': A}\n",
            r"must take \(backbone, \*, arm, image_shape, seed, your_setting=default\)",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why_and_where(source: str, fault: str) -> None:
    with pytest.raises(StudyError, match=fault):
        load_plugins([plugin(source)])


def test_a_failed_plugin_can_be_tried_again() -> None:
    for _ in range(2):
        with pytest.raises(StudyError, match="RuntimeError: no"):
            load_plugins([plugin("raise RuntimeError('no')")])


def test_rows_of_a_plugin_that_fails_are_not_called_unknown(load: Load, tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB + "1 / 0\n")
    with pytest.raises(StudyError, match=r"^1 fault in the study:\n  lab\.py:24: .* division by"):
        load(STUDY)
    with pytest.raises(StudyError, match=r"^1 fault in the study:\n  study\.yaml:6: .* gone\.py"):
        load(STUDY.replace("lab.py", "gone.py"))


def test_a_name_means_one_thing(load: Load, small: str, tmp_path: Path) -> None:
    row = "def f(*, classes, image_shape): pass\nBACKBONES = {'%s': f}\n"
    with pytest.raises(StudyError, match="'mine' in its table is a row of an earlier plug-in"):
        load_plugins([plugin(row % "mine"), plugin(row % "mine" + "#", "b.py")])
    (tmp_path / "lab.py").write_text(row % "tiny")
    with pytest.raises(StudyError, match=r"lab\.py: plugins: 'tiny' in its table is a row of the"):
        load(small + "plugins: [lab.py]\n")


@pytest.mark.parametrize(
    ("plugins", "fault"),
    [
        ("[gone.py]", r"study\.yaml:6: plugins\[0\]: gone\.py cannot be read \(no such file"),
        ("[/lab.py]", r"plugins\[0\]: expected a \.py file, relative to study\.yaml, found '/lab\.py'"),
        ("[lab.txt]", r"plugins\[0\]: expected a \.py file, relative"),
        ("lab.py", r"plugins: expected \[file\.py, \.\.\.\], found the text 'lab\.py'"),
        ("[3]", r"plugins\[0\]: expected a text, found the number 3"),
        ("[{path: lab.py}]", r"plugins\[0\]\.sha256: is missing; give a text"),
    ],
)  # fmt: skip
def test_faults_in_the_list_of_plugins(load: Load, small: str, plugins: str, fault: str) -> None:
    with pytest.raises(StudyError, match=fault):
        load(small + f"plugins: {plugins}\n")
