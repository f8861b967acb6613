"""What fits key by key but not together; above all: arms may differ only in the add-on, unless declared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import Recipe, Study, dump

Load = Callable[..., Study]


def faults_of(load: Load, text: str, *overrides: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        load(text, *overrides)
    return [str(f) for f in caught.value.faults]


# -- the confound gate ---------------------------------------------------------------------------


def test_undeclared_confounds_are_refused_all_at_once_with_the_line_to_add(
    load: Load, small: str
) -> None:
    text = small + (
        "arms: [baseline,\n  aim,\n  half_size]\n"
        "overrides:\n  aim:\n    steps: 20\n    augment: [flip]\n"
    )
    line = "Remove it, or declare it: declared_confounds: [steps, augment, half_size]"
    why = "a difference between them could come from that"
    assert faults_of(load, text) == [
        "study.yaml:8: half_size: the arms would differ not only in the add-on (half_size: half the "
        f"resolution): {why}. {line}",
        "study.yaml:11: steps: the arms would differ not only in the add-on (steps: baseline 10, aim "
        f"20, half_size 10): {why}. {line}",
        "study.yaml:12: augment: the arms would differ not only in the add-on (augment: baseline [], "
        f"aim [flip], half_size []): {why}. {line}",
    ]


def test_the_line_that_a_refusal_gives_lets_the_study_through(load: Load, small: str) -> None:
    text = small + "overrides: {aim: {steps: 20}}\n"
    (fault,) = faults_of(load, text)
    study = load(text + fault.partition("declare it: ")[2] + "\n")
    assert study.declared_confounds == {"steps": "baseline 10, aim 20, frozen 10"}


def test_epochs_in_place_of_steps_is_a_confound_in_both(load: Load, small: str) -> None:
    faults = faults_of(load, small + "overrides: {aim: {epochs: 3}}\n")
    assert [f.split(":")[2].strip() for f in faults] == ["steps", "epochs"]
    assert "epochs: baseline not given, aim 3, frozen not given" in faults[1]


def test_the_same_override_in_every_arm_is_no_confound(load: Load, small: str) -> None:
    own = "{baseline: {steps: 20}, aim: {steps: 20}, frozen: {steps: 20}}"
    assert load(small + f"overrides: {own}\n").declared_confounds == {}


def test_a_confound_in_own_words_is_kept(load: Load, small: str) -> None:
    study = load(small + "declared_confounds: {init: he for aim and glorot for baseline}\n")
    assert study.declared_confounds == {"init": "he for aim and glorot for baseline"}
    assert load(small + "declared_confounds: [init]\n").declared_confounds == {"init": ""}


def test_an_override_reaches_its_arm_alone_and_wins_over_the_recipe(load: Load, small: str) -> None:
    text = "overrides: {aim: {epochs: 3, lr: 0.5}}\ndeclared_confounds: [steps, epochs, lr]\n"
    study = load(small + text)
    assert study.recipe_of("baseline", {"weight_decay": 0.1}) == replace(
        study.recipe, weight_decay=0.1
    )
    assert study.recipe_of("aim", {}) == Recipe(steps=None, epochs=3, lr=0.5)


def test_overrides_and_confounds_survive_the_round_trip_and_change_the_hash(
    load: Load, small: str
) -> None:
    plain = load(small)
    study = load(small + "overrides: {aim: {augment: [flip]}}\ndeclared_confounds: [augment]\n")
    assert load(dump(study.to_dict(), "resolved")) == study
    assert Study.from_dict(json.loads(json.dumps(study.to_dict()))) == study
    assert study.overrides == {"aim": {"augment": ("flip",)}}
    assert study.study_hash != plain.study_hash


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "overrides: {aimm: {steps: 3}}",
            "overrides.aimm: unknown arm 'aimm'; did you mean 'aim'?",
        ),
        ("overrides: {aim: {stepz: 3}}", "overrides.aim.stepz: unknown key 'stepz'; did you mean"),
        ("overrides: {aim: 3}", "overrides.aim: expected a mapping, found the number 3"),
        ("overrides: {aim: {steps: 3, epochs: 1}}", "overrides.aim: gives both steps and epochs"),
        (
            "shared: {lr: {log_uniform: [1e-3, 1e-1]}}\noverrides: {aim: {lr: 0.1}}",
            "overrides.aim.lr: lr is searched under shared, the same for all arms",
        ),
        ("declared_confounds: epochs", "declared_confounds: expected a list of names"),
    ],
)
def test_overrides_are_checked_like_the_recipe(
    load: Load, small: str, text: str, fault: str
) -> None:
    assert any(fault in f for f in faults_of(load, small + text + "\n"))


def test_other_faults_do_not_hide_a_confound(load: Load, small: str) -> None:
    faults = faults_of(load, small + "overrides: {aim: {steps: 20}}\nresources: {cpu: 0}\n")
    assert ["resources.cpu" in faults[1], "steps" in faults[0]] == [True, True]


# -- looks, plans, fractions, later arms ---------------------------------------------------------


def test_a_plan_is_a_short_form_and_written_keys_win(load: Load, small: str) -> None:
    def sizes(protocol: str) -> tuple[int, int, int]:
        p = load(small + f"protocol: {protocol}\n").protocol
        return p.blocks, p.twins, p.confirm

    assert sizes("{plan: quick}") == (6, 4, 1)
    assert sizes("{plan: default}") == sizes("{}") == (10, 5, 2)
    assert sizes("{plan: full}") == (20, 5, 2)
    assert sizes("{plan: full, twins: 8}") == (20, 8, 2)
    assert sizes("{plan: quick, looks: [8, 12]}") == (12, 4, 1)
    assert sizes("{plan: full, blocks: null, twins: null, confirm: 3}") == (20, 5, 3)
    (fault,) = faults_of(load, small + "protocol: {plan: fast}\n")
    assert "protocol.plan: unknown plan 'fast'" in fault
    (fault,) = faults_of(load, small + "protocol: {plan: full, blocks: 6, twins: 4, confirm: 1}\n")
    assert "protocol.plan: changes nothing, as blocks, twins, confirm are written out" in fault


def test_the_last_look_is_the_number_of_blocks(load: Load, small: str) -> None:
    assert load(small + "protocol: {looks: [8, 12, 20]}\n").protocol.blocks == 20
    (fault,) = faults_of(load, small + "protocol: {looks: [8, 12, 20], blocks: 10}\n")
    assert fault.startswith(
        "study.yaml:6: protocol.looks: a study ends with its last look: it is at 20 blocks, but "
        "blocks is 10; leave blocks out, or end with 10"
    )
    (fault,) = faults_of(load, small + "protocol: {looks: [12, 8], blocks: 8}\n")
    assert "expected growing numbers of blocks, found [12, 8]" in fault
    (fault,) = faults_of(load, small + "arms: [aim]\nprotocol: {looks: [8, 12]}\n")
    assert "there is nothing to look at: the study compares no arms" in fault


def test_arms_for_later_must_be_there(load: Load, small: str) -> None:
    later = "protocol: {attribution: after_better}\n"
    study = load(small + later)
    assert (study.main_arms, study.later_arms) == (("baseline", "aim"), ("frozen",))
    (fault,) = faults_of(load, small + "arms: [baseline, aim]\n" + later)
    assert "protocol.attribution: after_better trains the arms beside baseline" in fault


def test_new_keys_at_their_defaults_keep_the_hash_of_older_studies(load: Load, small: str) -> None:
    study = load(small)
    older = study.identity()
    assert not {"looks", "budget_gpu_hours", "search_fraction", "attribution"} & set(
        older["protocol"]
    )
    assert not {"overrides", "declared_confounds"} & set(older)
    text = "protocol: {looks: [8, 10], search_fraction: 0.2, attribution: after_better}\n"
    changed = load(small + text)
    assert changed.study_hash != study.study_hash
    assert load(dump(changed.to_dict(), "resolved")) == changed


def test_a_budget_chooses_the_sizes_that_are_not_written_out(load: Load, small: str) -> None:
    def chosen(protocol: str) -> tuple[str, ...]:
        return load(small + f"protocol: {protocol}\n").protocol.chosen

    assert chosen("{budget_gpu_hours: 2}") == ("blocks", "twins", "confirm")
    assert chosen("{budget_gpu_hours: 2, twins: 7}") == ("blocks", "confirm")
    assert chosen("{budget_gpu_hours: 2, plan: quick}") == chosen("{}") == ()
    assert chosen("{budget_gpu_hours: 2, looks: [8, 12]}") == ("twins", "confirm")


# -- measured arms -------------------------------------------------------------------------------


def test_a_measured_arm_needs_one_design_and_one_batch_size(load: Load, small: str) -> None:
    arms = "arms: [baseline, aim, time_matched]\n"
    assert "time_matched" in load(small + arms).arms
    searched = small.replace("{name: memory}", "{name: memory, update_width: {choice: [8, 16]}}")
    (fault,) = faults_of(load, searched + arms)
    assert "time_matched must cost what one design of the add-on costs, but update_width" in fault
    assert load(searched + arms + "protocol: {explore: {trials: 4}}\n").explore_arms == (
        "baseline",
        "aim",
    )
    (fault,) = faults_of(load, small + arms + "shared: {batch_size: {choice: [16, 32]}}\n")
    assert "cannot be matched while batch_size" in fault
    (fault,) = faults_of(load, small + "arms: [aim, time_matched]\n")
    assert "time_matched needs the arms baseline and aim; add baseline" in fault


# -- several GPUs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "found"),
    [
        ("recipe.batch_size=30", "recipe.batch_size", "found 30"),
        ("overrides.aim.batch_size=6", "overrides.aim.batch_size", "found 6"),
        ("shared.batch_size={choice: [8, 12, 6, 10]}", "shared.batch_size", "found 6, 10"),
        ("shared.batch_size={int: [8, 64]}", "shared.batch_size", "found a range"),
    ],
)
def test_a_batch_that_several_gpus_cannot_share_is_refused(
    load: Load, small: str, override: str, key: str, found: str
) -> None:
    gpus = "resources.gpu=4"
    text = "each of the 4 GPUs of a training (resources.gpu) takes an equal slice of a batch: expected "
    faults = faults_of(load, small, gpus, override)
    assert any(f"{key}: {text}multiples of 4, such as 32, {found}" in f for f in faults)
    assert load(small, gpus, "recipe.batch_size=12").resources.gpu == 4.0
    assert load(small, gpus, "shared.batch_size={choice: [8, 12]}").resources.gpu == 4.0
