"""The keys of protocol.explore among themselves and with the arms: faults in words, at their lines."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import WarmStart, dump, load_study
from aim_tune.tables import HOUSE

TEXT = """\
name: small
backbone: {{name: mlp}}
data: {{name: digits}}
arms: [baseline, aim, frozen]
recipe: {{steps: 10}}
shared: {{lr: {{log_uniform: [1.0e-3, 1.0e-1]}}}}
addon: {{name: memory}}
protocol:
  blocks: 2
  twins: 2
  confirm: 1
  explore: {{trials: 8, {more}}}
"""


def load(tmp_path, more):
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.format(more=more))
    return load_study(file, HOUSE)[0]


def test_every_key_is_read(tmp_path):
    more = "arms: [baseline, aim], narrow: true, stopping: true, objectives: [val_accuracy]"
    explore = load(tmp_path, more).protocol.explore
    assert (explore.arms, explore.narrow, explore.stopping, explore.objectives) == (
        ("baseline", "aim"), True, True, ("val_accuracy",),
    )  # fmt: skip
    assert load(tmp_path, "arms: [aim, baseline]").explore_arms == ("baseline", "aim")
    assert load(tmp_path, "lag: 4").explore_arms == ("baseline", "aim", "frozen")


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("trials: 1001", "from 0 to 1000, found 1001"),
        ("arms: [aim, wdie]", "unknown arm 'wdie'"),
        ("arms: [baseline]", "names no arm with the add-on"),
        ("arms: [aim], narrow: true", "needs the explore scores of the baseline"),
        ("objectives: [step_ms]", "must name val_accuracy"),
        (
            "warm_start: first, objectives: [val_accuracy, step_ms]",
            "does not go with the objective step_ms: step times of another run do not compare; remove",
        ),
        ("warm_start: 7", "expected a path or null, found the number 7"),
        ("warm_start: [a, b]", 'expected a path or null, found ["a","b"]'),
        ("warm_start: {study: first, trials: 0}", "expected a whole number of at least 1, found 0"),
        ("warm_start: {folder: first}", "unknown key 'folder'"),
        ("objectives: [val_accuracy, speed]", "unknown objectives 'speed'"),
        (
            "stopping: true, objectives: [val_accuracy, parameters]",
            "does not go with several objectives",
        ),
    ],
)
def test_faults_name_the_key_and_the_way_out(tmp_path, more, text):
    body = more if more.startswith("trials") else f"trials: 8, {more}"
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.format(more=more).replace(f"trials: 8, {more}", body))
    with pytest.raises(StudyError, match=re.escape(text)) as caught:
        load_study(file, HOUSE)
    assert "study.yaml:12" in str(caught.value)


@pytest.mark.parametrize("key", ["narrow: true", "stopping: true", "warm_start: first"])
def test_what_needs_explore_is_refused_without_it(tmp_path, key):
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.format(more=key).replace("trials: 8", "trials: 0"))
    with pytest.raises(StudyError, match="there is no explore"):
        load_study(file, HOUSE)


def test_a_measured_arm_cannot_take_part(tmp_path):
    file = tmp_path / "study.yaml"
    text = TEXT.format(more="arms: [aim, time_matched]")
    file.write_text(text.replace("aim, frozen]", "aim, time_matched]"))
    with pytest.raises(StudyError, match="time_matched cannot take part"):
        load_study(file, HOUSE)


def test_the_folder_of_a_warm_start_is_relative_to_the_study_file_and_in_set_to_where_one_is(
    tmp_path, monkeypatch
):
    (tmp_path / "spaces").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "spaces" / "study.yaml"

    def read(written: str, *overrides: str) -> object:
        file.write_text(TEXT.format(more=f"warm_start: {written}"))
        return load_study(file, HOUSE, overrides)[0].protocol.explore.warm_start

    assert read("../results/first") == str(tmp_path / "results" / "first")
    assert read(str(tmp_path / "first")) == str(tmp_path / "first")
    assert read("null") is None
    inside = "protocol.explore.warm_start=results/first"
    assert read("null", inside) == str(tmp_path / "elsewhere" / "results" / "first")


def test_a_resolved_warm_start_comes_back_from_its_file(tmp_path):
    start = WarmStart(study="first", study_hash="1e5", trials=3, digest="0123")
    study = load(tmp_path, "lag: 4")
    explore = replace(study.protocol.explore, warm_start=start)
    study = replace(study, protocol=replace(study.protocol, explore=explore))
    file = tmp_path / "resolved.yaml"
    file.write_text(dump(study.to_dict()))
    again = load_study(file, HOUSE)[0]
    assert again == study
    assert again.study_hash == study.study_hash
    plain = load(tmp_path, "lag: 4")
    assert "warm_start" not in plain.identity()["protocol"]["explore"]
