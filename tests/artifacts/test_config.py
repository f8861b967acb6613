"""best_config.yaml says beside each key what it is, and reads back equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aim_tune import tables
from aim_tune.artifacts.config import COMMENTS, SECTIONS, asked, config_text, for_arm, read_config
from aim_tune.ledger import History
from aim_tune.protocol.best import best_config
from aim_tune.spec.yaml_io import load_text
from aim_tune.stats.simulate import World, example_study, simulated_events


@pytest.fixture(scope="module")
def config() -> dict:
    study = example_study(blocks=3, twins=2, confirm=1)
    history = History()
    for event in simulated_events(study, World(effects={"aim": 30.0, "frozen": 0.0}).play):
        history.apply(json.loads(json.dumps(event, default=float)))
    return best_config(
        study, history, {"verdict": "better", "arm": "aim"}, sentence="aim won. " * 30
    )


def values(text: str) -> dict:
    tree, faults = load_text(text, "best_config.yaml")
    assert not faults
    return tree.plain()


def test_the_commented_file_reads_back_equal(config):
    assert values(config_text(config, tables.HOUSE)) == config


def test_every_part_that_has_a_comment_shows_it(config):
    text = " ".join(config_text(config, tables.HOUSE).replace("\n", " ").split())
    text = text.replace("# ", "")
    for section in SECTIONS.values():
        assert section in text
    for key, comment in COMMENTS.items():
        node = config
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        if node is not None:
            assert comment in text, key


def test_a_searched_value_names_its_meaning_and_where_it_was_searched(config):
    lines = config_text(config, tables.HOUSE).splitlines()
    (found,) = [line for line in lines if line.startswith("    lr: ")][:1]
    domain = json.dumps(config["study"]["shared"]["lr"]["log_uniform"])
    assert found.endswith(f"# peak learning rate; found in log_uniform {domain}")


def test_settings_of_the_addon_are_explained_by_its_table_row(config):
    text = config_text(config, tables.HOUSE)
    doc = tables.HOUSE.addons["memory"].settings["activation"].doc
    assert doc in text


@pytest.mark.parametrize(
    "odd", ["no", "1e-3", "a: b # c", "two\nlines", "", "x" * 300, "'\"{[", "- a"]
)
def test_odd_texts_survive_their_comments(config, odd):
    changed = {**config, "provenance": {**config["provenance"], "sentence": odd, "verdict": odd}}
    assert values(config_text(changed, tables.HOUSE)) == changed


def test_no_line_is_too_long_to_read(config):
    lines = config_text(config, tables.HOUSE).splitlines()
    long = [line for line in lines if len(line) > 120 and not line.lstrip().startswith("source:")]
    assert not long


def test_another_arm_brings_its_own_point_and_record(config):
    other = for_arm(config, "baseline")
    study, request = asked(other)
    assert tuple(request.arms) == ("baseline",)
    assert request.arms["baseline"].addon == {}
    assert other["recorded"] == config["others"]["baseline"]["recorded"]
    assert study.to_dict() == config["study"]
    with pytest.raises(ValueError, match=r"unknown arm 'amy'.*known: aim, baseline, frozen"):
        for_arm(config, "amy")


def test_a_file_of_an_older_version_without_others_still_reads(config, tmp_path: Path):
    old = {k: v for k, v in config.items() if k != "others"}
    del old["recorded"]["allotted_steps"]
    (tmp_path / "old.yaml").write_text(config_text(old, tables.HOUSE))
    read = read_config(tmp_path / "old.yaml")
    assert asked(read)[1].steps == {}
    with pytest.raises(ValueError, match="unknown arm 'baseline'"):
        for_arm(read, "baseline")


def test_a_file_that_is_not_there_and_a_folder_are_told_apart(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"no\.yaml is not there; make one: python -m aim_tune\.export"
    ):
        read_config(tmp_path / "no.yaml")
    with pytest.raises(
        ValueError, match=r"is a folder; name the file, such as .*best_config\.yaml"
    ):
        read_config(tmp_path)
