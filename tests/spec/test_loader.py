"""A study file: what is filled in, every fault with its line, the round trip, --set."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import (
    Addon,
    Catalog,
    Choice,
    Component,
    Explore,
    Fixed,
    IntUniform,
    Protocol,
    Recipe,
    Resources,
    Study,
    Uniform,
    dump,
    load_study,
    schema,
)
from aim_tune.spec.study import RECIPE_FIELDS

Load = Callable[..., Study]

FULL = """\
name: full-study_1.0
backbone: {name: tiny, width: 12}
data: {name: dots, train_images: 200, noise_sd: 1}
arms: [baseline, aim, no_update]
recipe: {epochs: 3, batch_size: 16, optimizer: sgd, schedule: cosine, augment: [flip, crop], amp: true}
shared:
  lr: {log_uniform: [1e-3, 1e-1]}
  grad_clip: {choice: [null, 1, 5.0]}
  batch_size: 64
addon:
  name: memory
  memory_shape: {choice: [[4, 4, 16], [2, 2, 64]]}
  kernel_size: {choice: [1, 3]}
  update_width: {log_int: [8, 32]}
  decay: {uniform: [0, 1]}
protocol: {explore: {trials: 8, lag: 2}, blocks: 6, twins: 4, confirm: 1, rope_points: 1, seed: 7}
resources: {cpu: 2, gpu: 0.5, pack: arm, time_limit_s: 60}
"""
FULL = FULL.replace("batch_size: 16, ", "")


def faults_of(load: Load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        load(text, *overrides)
    return [str(f) for f in caught.value.faults]


# -- what comes out ------------------------------------------------------------------------------


def test_a_full_study_comes_out_as_written(load: Load) -> None:
    assert load(FULL) == Study(
        name="full-study_1.0",
        backbone=Component(name="tiny", settings={"width": 12}),
        data=Component(name="dots", settings={"train_images": 200, "noise_sd": 1.0}),
        arms=("baseline", "aim", "no_update"),
        recipe=Recipe(
            epochs=3, optimizer="sgd", schedule="cosine", augment=("flip", "crop"), amp=True
        ),
        shared={
            "lr": Uniform(1e-3, 1e-1, log=True),
            "grad_clip": Choice((None, 1.0, 5.0)),
            "batch_size": Fixed(64),
        },
        addon=Addon(
            name="memory",
            space={
                "memory_shape": Choice(([4, 4, 16], [2, 2, 64])),
                "kernel_size": Choice((1, 3)),
                "activation": Fixed("relu"),
                "update_width": IntUniform(8, 32, log=True),
                "decay": Uniform(0.0, 1.0),
            },
        ),
        protocol=Protocol(
            explore=Explore(trials=8, lag=2), blocks=6, twins=4, confirm=1, rope_points=1.0, seed=7
        ),
        resources=Resources(cpu=2, gpu=0.5, pack="arm", time_limit_s=60.0),
    )


def test_a_short_study_gets_every_default(load: Load, small: str) -> None:
    study = load(small)
    assert study.arms == ("baseline", "aim", "frozen")
    assert study.backbone.settings == {"width": 8}
    assert study.data.settings == {"train_images": None, "noise_sd": 0.4}
    assert study.recipe == Recipe(steps=10)
    assert (study.protocol, study.resources, study.plugins) == (Protocol(), Resources(), ())
    assert study.addon is not None
    assert study.addon.space["memory_shape"] == Fixed([4, 4, 16])
    assert set(study.addon.space) == {
        "memory_shape", "kernel_size", "activation", "update_width", "decay",
    }  # fmt: skip


def test_a_component_may_be_written_as_its_name(load: Load) -> None:
    text = "name: s\nbackbone: tiny\ndata: dots\nrecipe: {steps: 1}\naddon: memory\n"
    study = load(text)
    assert study.backbone == Component(name="tiny", settings={"width": 8})
    assert study.addon is not None


def test_without_an_addon_the_baseline_alone_is_searched(load: Load, small: str) -> None:
    study = load(small.replace("addon: {name: memory}", "addon:"))
    assert (study.arms, study.addon, study.compares) == (("baseline",), None, False)


def test_an_addon_that_no_arm_has_is_left_out(load: Load, small: str) -> None:
    assert load(small + "arms: [baseline]").addon is None


@pytest.mark.parametrize("arms", ["[aim]", "[baseline, aim]"])
def test_plain_search_needs_no_blocks(load: Load, small: str, arms: str) -> None:
    text = small + f"arms: {arms}\nprotocol: {{explore: {{trials: 5}}, blocks: 0}}"
    assert load(text).compares is False


def test_paths_become_absolute_from_the_current_folder(load: Load, small: str) -> None:
    text = small.replace("{name: dots}", "{name: folder, root: ../images}")
    settings = load(text).data.settings
    assert settings["root"] == os.path.abspath("../images")
    assert settings["cache"] == os.path.abspath("cache")
    assert settings["batches"] == [1, 2]


def test_the_limits_cover_exactly_the_fields_of_a_study() -> None:
    for section, settings in (
        (Recipe, schema.RECIPE),
        (Explore, schema.EXPLORE),
        (Resources, schema.RESOURCES),
        (Protocol, {**schema.PROTOCOL, "explore": None, "chosen": None}),
    ):
        assert {f.name for f in fields(section)} == set(settings)
    assert set(schema.RECIPE) == set(RECIPE_FIELDS)
    assert schema.RECIPE["lr"].default == Recipe().lr


# -- round trip and identity ---------------------------------------------------------------------


def test_the_resolved_study_loads_again_equal(load: Load, small: str) -> None:
    for text in (FULL, small, small.replace("{name: dots}", "{name: folder, root: x}")):
        study = load(text)
        again = load(dump(study.to_dict(), "resolved"))
        assert again == study
        assert again.study_hash == study.study_hash
        assert dump(again.to_dict()) == dump(study.to_dict())
        assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study


def test_only_what_changes_results_changes_the_hash(load: Load, small: str) -> None:
    first = load(small).study_hash
    assert load(small, "resources.pack=arm", "resources.time_limit_s=9").study_hash == first
    assert load("# other comment\n" + small).study_hash == first
    assert load(small, "protocol.seed=1").study_hash != first
    assert load(small, "resources.cpu=2").study_hash != first


# -- faults --------------------------------------------------------------------------------------

FIVE_FAULTS = """\
name: five
backbone: {name: tini}
data: {name: dots, noise_sd: -1}
recipe:
  steps: 10
  optimizer: adamv
addon:
  name: memory
  kernel_size: {choice: [1, 2]}
protocol:
  block: 6
"""


def test_five_different_faults_are_all_reported_with_their_lines(load: Load) -> None:
    assert faults_of(load, FIVE_FAULTS) == [
        "study.yaml:2: backbone.name: unknown backbone 'tini'; did you mean 'tiny'? known: tiny, tower",
        "study.yaml:3: data.noise_sd: expected a number of at least 0, found -1",
        "study.yaml:6: recipe.optimizer: unknown optimizer 'adamv'; did you mean 'adam'? "
        "known: adam, adamw, sgd",
        "study.yaml:9: addon.kernel_size: expected one of 1, 3, 5, found the number 2",
        "study.yaml:11: protocol.block: unknown key 'block'; did you mean 'blocks'? "
        "known: attribution, blocks, budget_gpu_hours, confirm, explore, export_seeds, looks, plan, "
        "rope_points, sampler, search_fraction, seed, twins",
    ]


def test_the_text_of_the_error_counts_the_faults(load: Load) -> None:
    with pytest.raises(StudyError, match=r"^5 faults in the study:\n  study\.yaml:2: backbone"):
        load(FIVE_FAULTS)


def test_faults_of_the_yaml_and_of_the_study_come_together(load: Load, small: str) -> None:
    text = small.replace("steps: 10", "steps: 010") + "name: again\narm: [aim]\n"
    assert [re.sub(r" \(.*|;.*", "", f) for f in faults_of(load, text)] == [
        "study.yaml:4: recipe.steps: 010 starts with a zero: 8 or 10? write it without, or quote a text",
        "study.yaml:6: name: given twice, first at study.yaml:1",
        "study.yaml:7: arm: unknown key 'arm'",
    ]


ONE_FAULT = r"""
recipe: {steps: 10} ==> recipe: {steps: 10, epochs: 2}
    4: recipe: exactly one of steps and epochs must be given, found both; drop one
recipe: {steps: 10} ==> recipe: {}
    4: recipe: exactly one of steps and epochs must be given, found neither
recipe: {steps: 10} ==>
    1: recipe: exactly one of steps and epochs must be given, found neither
steps: 10 ==> steps: 10.0
    4: recipe.steps: expected a whole number from 1 to 1,000,000,000 or null, found the number 10.0; write
    10
steps: 10 ==> steps: 0
    4: recipe.steps: expected a whole number from 1
steps: 10 ==> steps: true
    4: recipe.steps: expected a whole number from 1 to 1,000,000,000 or null, found true
steps: 10 ==> steps: 10, amp: yes
    4: recipe.amp: expected true or false, found the text 'yes'; in YAML 1.2 only true and false
steps: 10 ==> steps: 10, optimizer: 3
    4: recipe.optimizer: expected one of "adamw", "adam", "sgd", found the number 3; put a text
steps: 10 ==> steps: 10, augment: flip
    4: recipe.augment: expected a list of names, found the text 'flip'; write it in brackets
steps: 10 ==> steps: 10, augment: [flip, flop]
    4: recipe.augment: unknown augment 'flop'; did you mean 'flip'? known: contrast, crop, cutout, flip, flip_vertical, rotate, translate
steps: 10 ==> steps: 10, augment: [flip, flip]
    4: recipe.augment: names one thing twice: ['flip', 'flip']
steps: 10 ==> steps: 10, label_smoothing: 1
    4: recipe.label_smoothing: expected a number from 0 to 0.9999, found 1
steps: 10 ==> steps: 10, momentum: null
    4: recipe.momentum: expected a number from 0 to 0.9999, found null (nothing)
steps: 10 ==> steps: 10, lr: {log_uniform: [1e-3, 1e-1]}
    4: recipe.lr: cannot be searched here, only what stands in shared and addon can; write it as
    shared.lr instead
steps: 10 ==> steps: 10, lr: {mean: 1}
    4: recipe.lr: expected a number of at least 1e-12, found a mapping
steps: 10 ==> steps: 10, lr: 0.1}\nshared: {lr: {log_uniform: [1e-3, 1e-1]}
    4: recipe.lr: stands in shared too (at study.yaml:5); a value is either fixed or searched
steps: 10 ==> steps: 10}\nshared: {steps: {int: [1, 5]}
    5: shared.steps: cannot be searched; fix it as recipe.steps. Searchable: lr, weight_decay
steps: 10 ==> steps: 10}\nshared: {momentun: 0.5
    5: shared.momentun: unknown hyperparameter 'momentun'; did you mean 'momentum'?
steps: 10 ==> steps: 10}\nshared: {lr: {log_uniform: [0, 1]}
    5: shared.lr: expected a number of at least 1e-12, found 0
steps: 10 ==> steps: 10}\nshared: {weight_decay: {log_uniform: [0, 1]}
    5: shared.weight_decay: log_uniform needs low > 0, found 0; or use uniform
steps: 10 ==> steps: 10}\nshared: {lr: {uniform: [1, 0.5]}
    5: shared.lr: uniform needs low < high, found [1, 0.5]
steps: 10 ==> steps: 10}\nshared: {lr: {uniform: [1]}
    5: shared.lr: uniform needs [low, high], found [1]
steps: 10 ==> steps: 10}\nshared: {lr: {int: [1, 2]}
    5: shared.lr: int does not fit here (it takes a number of at least 1e-12); use choice, uniform
    or log_uniform
steps: 10 ==> steps: 10}\nshared: {optimizer: {uniform: [1, 2]}
    5: shared.optimizer: uniform does not fit here
steps: 10 ==> steps: 10}\nshared: {lr: {uniform: [1, 2], choice: [1]}
    5: shared.lr: expected a value or exactly one of choice, uniform, log_uniform, int, log_int;
    found uniform, choice
steps: 10 ==> steps: 10}\nshared: {lr: {loguniform: [1, 2]}
    5: shared.lr: expected a value or exactly one of choice
steps: 10 ==> steps: 10}\nshared: {lr: {choice: []}
    5: shared.lr: choice needs a list of values in brackets, found []
steps: 10 ==> steps: 10}\nshared: {lr: {choice: [1, 0.1, 1.0]}
    5: shared.lr: choice offers 1.0 twice; each option once
name: memory ==> name: memory, memory_shape: {choice: [[4, 4], [4, 4, 4]]}
    5: addon.memory_shape: expected a list of 3 whole numbers from 1 to 4096, found 2 of them: [4,
    4]
name: memory ==> name: memory, memory_shape: [4, 0, 4]
    5: addon.memory_shape: expected a list of 3 whole numbers from 1 to 4096, found [4,0,4]
name: memory ==> name: memory, memory_shape: [4, 4, 4.5]
    5: addon.memory_shape: expected a list of 3 whole numbers from 1 to 4096, found [4,4,4.5]
name: memory ==> name: memory, kernel_size: {int: [1, 5]}
    5: addon.kernel_size: int does not fit here (it takes one of 1, 3, 5); use choice
name: memory ==> name: memory, steps: 3
    5: addon.steps: unknown setting of memory 'steps'; known: activation, decay, kernel_size,
    memory_shape, name, update_width; steps belongs under recipe
name: memory ==> name: memori
    5: addon.name: unknown add-on 'memori'; did you mean 'memory'? known: memory
name: memory ==> decay: 0.5
    5: addon.name: is missing; one of memory
addon: {name: memory} ==> addon: [memory]
    5: addon: expected a mapping, found a list
addon: {name: memory} ==> arms: [baseline, aim]
    5: arms: the arm 'aim' needs an add-on: add a section addon: {name: ...}
addon: {name: memory} ==> addon: {name: memory}\narms: [baseline, frozn]
    6: arms: unknown arm 'frozn'; did you mean 'frozen'? known: aim, baseline, frozen,
    half_size, no_update, time_matched
addon: {name: memory} ==> addon: {name: memory}\narms:\n- baseline\n- ai
    8: arms: unknown arm 'ai'
addon: {name: memory} ==> addon: {name: memory}\narms: [aim, aim]
    6: arms: names one thing twice: ['aim', 'aim']
addon: {name: memory} ==> addon: {name: memory}\narms: []
    6: arms: names no arm
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {blocks: 0}
    6: protocol.blocks: nothing to run: blocks and explore.trials are both 0
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {confirm: 0}
    6: protocol.confirm: a comparison needs at least one confirm pair per block
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {twins: 0}
    6: protocol.twins: a block needs at least one twin
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {blocks: -1}
    6: protocol.blocks: expected a whole number from 0 to 1000, found -1
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {explore: 8}
    6: protocol.explore: expected a mapping, found the number 8
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {explore: {trials: 8, lag: 0}}
    6: protocol.explore.lag: expected a whole number from 1 to 10,000, found 0
addon: {name: memory} ==> addon: {name: memory}\nprotocol: {trials: 8}
    6: protocol.trials: unknown key 'trials'; known: attribution, blocks, budget_gpu_hours, confirm, explore,
    export_seeds, looks, plan, rope_points, sampler, search_fraction, seed, twins; trials belongs under protocol.explore
addon: {name: memory} ==> addon: {name: memory}\nresources: {gpu: 1.5}
    6: resources.gpu: expected a share of one GPU such as 0.5, or a whole number of them, found 1.5; with 1, several
    GPUs are used by several trials at a time
addon: {name: memory} ==> addon: {name: memory}\nresources: {pack: twins}
    6: resources.pack: unknown pack 'twins'; did you mean 'twin'?
addon: {name: memory} ==> addon: {name: memory}\nblocks: 3
    6: blocks: unknown key 'blocks'; known: addon, arms, backbone, data, declared_confounds, name,
    overrides, plugins, protocol, recipe, resources, shared; blocks belongs under protocol
addon: {name: memory} ==> addon: {name: memory}\n<<: {a: 1}
    6: <<: unknown key '<<'
{name: tiny} ==> {name: tiny, width: {choice: [8, 16]}}
    2: backbone.width: cannot be searched here, only what stands in shared and addon can
{name: tiny} ==> {name: tiny, width: 65}
    2: backbone.width: expected a whole number from 1 to 64, found 65
{name: tiny} ==> {name: tiny, depth: 3}
    2: backbone.depth: unknown setting of tiny 'depth'; did you mean 'width'? known: name, width
{name: tiny} ==> {}
    2: backbone.name: is missing; one of tiny, tower
{name: tiny} ==> [tiny]
    2: backbone: expected a mapping, found a list
{name: tiny} ==>
    2: backbone: is missing; write backbone: {name: ...} with one of tiny, tower
backbone: {name: tiny}\n ==>
    1: backbone: is missing; write backbone: {name: ...} with one of tiny, tower
{name: dots} ==> {name: folder}
    3: data.root: is missing; give a path
{name: dots} ==> {name: folder, root: ''}
    3: data.root: expected a path, found the text ''
{name: dots} ==> {name: folder, root: x, batches: [1, 9]}
    3: data.batches: expected a list of whole numbers from 1 to 5, found [1,9]
{name: dots} ==> {name: folder, root: x, batches: 1}
    3: data.batches: expected a list of whole numbers from 1 to 5, found the number 1; write it in
    brackets
name: small\n ==>
    1: name: is missing; it names the folder of the results
name: small ==> name: 2026
    1: name: expected a text, found the number 2026; put a text that looks like a number
"""
"""What replaces what in the small study, then the fault that must be the only one."""


def mistakes() -> list[tuple[str, str, str]]:
    cases: list[tuple[str, str, str]] = []
    for line in ONE_FAULT.strip().splitlines():
        if line.startswith("    "):
            old, new, fault = cases[-1]
            cases[-1] = (old, new, f"{fault} {line.strip()}".strip())
        else:
            old, _, new = line.replace("\\n", "\n").partition(" ==>")
            cases.append((old, new.strip(" "), ""))
    return cases


@pytest.mark.parametrize(("old", "new", "fault"), mistakes(), ids=[m[2][:60] for m in mistakes()])
def test_one_mistake_gives_one_fault(
    load: Load, small: str, old: str, new: str, fault: str
) -> None:
    assert old in small
    found = faults_of(load, small.replace(old, new))
    assert len(found) == 1, found
    assert found[0].startswith(f"study.yaml:{fault}"), found[0]


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "a\\nb", "x" * 101, "🙂", ".hidden", "-x", " a", "a b", "..", "café", "a:b"],
)
def test_unsafe_names_are_refused(load: Load, small: str, name: str) -> None:
    (fault,) = faults_of(load, small.replace("name: small", f'name: "{name}"'))
    assert fault.startswith(
        "study.yaml:1: name: expected up to 100 letters (a-z), digits, dots, dashes or underscores"
    )
    assert len(fault) < 250


@pytest.mark.parametrize("name", ["mlflow.db", "MLartifacts"])
def test_a_study_cannot_take_the_place_of_mlflow(load: Load, small: str, name: str) -> None:
    (fault,) = faults_of(load, small.replace("name: small", f"name: {name}"))
    assert "is where MLflow keeps its things" in fault


@pytest.mark.parametrize("text", ["", "# nothing", "just a text", "- a\n- b", "3"])
def test_a_file_that_is_no_study_says_what_one_is(load: Load, text: str) -> None:
    (fault,) = faults_of(load, text)
    assert fault.startswith("study.yaml:1: a study is a mapping with name, backbone, data, arms")


def test_a_missing_file_is_named(house: Catalog, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"gone\.yaml: cannot be read \(no such file"):
        load_study(tmp_path / "gone.yaml", house)


# -- --set ---------------------------------------------------------------------------------------


def test_set_replaces_adds_and_removes(load: Load) -> None:
    study = load(
        FULL,
        "protocol.blocks=10",
        "shared.lr=1e-2",
        "shared.momentum={choice: [0.8, 0.9]}",
        "recipe.epochs=null",
        "recipe.steps = 50",
        "backbone=tower",
        "name=other",
        "addon.memory_shape=[2, 2, 8]",
        "protocol.explore.trials=0",
    )
    assert study.protocol.blocks == 10
    assert study.shared["lr"] == Fixed(0.01)
    assert study.shared["momentum"] == Choice((0.8, 0.9))
    assert (study.recipe.steps, study.recipe.epochs) == (50, None)
    assert study.backbone == Component(name="tower", settings={})
    assert study.name == "other"
    assert study.addon is not None
    assert study.addon.space["memory_shape"] == Fixed([2, 2, 8])
    assert study.protocol.explore == Explore(trials=0, lag=2)


def test_set_reaches_into_sections_that_the_file_leaves_out(load: Load, small: str) -> None:
    text = small.replace("{name: tiny}", "tiny")
    study = load(text, "protocol.explore.trials=3", "shared.lr=0.1", "backbone.width=4")
    assert study.protocol.explore.trials == 3
    assert study.shared == {"lr": Fixed(0.1)}
    assert study.backbone == Component(name="tiny", settings={"width": 4})


def test_the_later_set_wins_and_aliases_stay_apart(load: Load, small: str) -> None:
    text = small + "shared: {lr: &d {uniform: [1, 2]}, weight_decay: *d}\n"
    study = load(text, "shared.lr.uniform=[1, 3]", "shared.lr.uniform=[1, 4]")
    assert study.shared == {"lr": Uniform(1.0, 4.0), "weight_decay": Uniform(1.0, 2.0)}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("protocol.blocks=lots", "--set protocol.blocks=lots: protocol.blocks: expected a whole number"),
        ("protocol.blokcs=3", "--set protocol.blokcs=3: protocol.blokcs: unknown key 'blokcs'; did you mean"),
        ("protocol.blocks", "--set protocol.blocks: expected key=value, such as protocol.blocks=10"),
        ("protocol..blocks=1", "--set protocol..blocks=1: expected key=value"),
        ("=1", "--set =1: expected key=value"),
        ("recipe.steps.x=1", "--set recipe.steps.x=1: recipe.steps.x: there is no such section"),
        ("recipe.lr=010", "--set recipe.lr=010: recipe.lr: 010 starts with a zero"),
        ("recipe.lr=[1", "--set recipe.lr=[1: recipe.lr: not YAML"),
        ("recipe.epochs=2", "study.yaml:4: recipe: exactly one of steps and epochs must be given, found"),
        ("data.root=x", "--set data.root=x: data.root: unknown setting of dots 'root'"),
    ],
)  # fmt: skip
def test_faults_of_set_name_the_flag(load: Load, small: str, override: str, fault: str) -> None:
    (found,) = faults_of(load, small, override)
    assert found.startswith(fault), found


# -- light ---------------------------------------------------------------------------------------


def test_loading_a_study_imports_nothing_heavy(tmp_path: Path, small: str) -> None:
    (tmp_path / "study.yaml").write_text(small.replace("addon: {name: memory}\n", ""))
    code = """
import sys
from pathlib import Path
from aim_tune.spec import Catalog, Entry, load_study
row = Entry(build="torch:nn", doc="")
house = Catalog(backbones={"tiny": row}, data={"dots": row}, addons={})
load_study(Path("study.yaml"), house, ["protocol.blocks=3"])
heavy = {"torch", "torchvision", "ray", "mlflow", "optuna", "sklearn", "scipy", "matplotlib", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- whatever is in the file ---------------------------------------------------------------------

TOKENS = [
    "null", "true", "[]", "{}", "[1]", "{a: 1}", "-1", "1e-3", "010", "!!x y", "&a b", "*a", "''",
    "name", "choice", "{choice: [1, null, [2], {a: 1}]}", "{uniform: [null, 1]}", "{int: [010, 2]}",
    "{log_uniform: {a: 1}}", ".nan", "99999999999999999999", "\t", "\n", "- ", "? ", ": ", "é",
]  # fmt: skip


def test_a_damaged_file_gives_a_study_or_faults_and_nothing_else(load: Load) -> None:
    rng = random.Random(0)
    outcomes = {"study": 0, "faults": 0}  # any other exception fails the test
    for _ in range(300):
        parts = re.split(r"(\s+|[,\[\]{}:])", FULL)
        for _ in range(rng.randint(1, 3)):
            parts[rng.randrange(len(parts))] = rng.choice(TOKENS) if rng.random() < 0.8 else ""
        try:
            study = load("".join(parts))
        except StudyError as error:
            outcomes["faults"] += len(error.faults) > 0
        else:
            assert load(dump(study.to_dict())) == study
            outcomes["study"] += 1
    assert sum(outcomes.values()) == 300
    assert min(outcomes.values()) > 10
