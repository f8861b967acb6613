"""The keys of protocol.explore among themselves and with the arms: faults in words, at their lines."""

from __future__ import annotations

import re

import pytest

from aim_tune.errors import StudyError
from aim_tune.spec import load_study
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


@pytest.mark.parametrize("key", ["narrow", "stopping"])
def test_what_needs_explore_is_refused_without_it(tmp_path, key):
    file = tmp_path / "study.yaml"
    file.write_text(TEXT.format(more=f"{key}: true").replace("trials: 8", "trials: 0"))
    with pytest.raises(StudyError, match="there is no explore"):
        load_study(file, HOUSE)


def test_a_measured_arm_cannot_take_part(tmp_path):
    file = tmp_path / "study.yaml"
    text = TEXT.format(more="arms: [aim, time_matched]")
    file.write_text(text.replace("aim, frozen]", "aim, time_matched]"))
    with pytest.raises(StudyError, match="time_matched cannot take part"):
        load_study(file, HOUSE)
