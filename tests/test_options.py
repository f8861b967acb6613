"""What the verbs share: complaints break between words on a terminal, and stay whole elsewhere."""

from __future__ import annotations

import os
import sys

import pytest

from aim_tune import options, search

FAULTS = """2 faults in the study:
  study.yaml:3: backbone.name: unknown backbone 'resnet9'; did you mean 'resnet8'? known: mlp, resnet8
  study.yaml:7: recipe.steps: give 1 or more"""


def test_lines_break_between_words_and_keep_their_indent():
    assert options.wrapped(FAULTS, 60).splitlines() == [
        "2 faults in the study:",
        "  study.yaml:3: backbone.name: unknown backbone 'resnet9';",
        "    did you mean 'resnet8'? known: mlp, resnet8",
        "  study.yaml:7: recipe.steps: give 1 or more",
    ]


def test_a_word_that_is_too_long_stays_whole():
    path = "/somewhere/" + 50 * "x"
    assert options.wrapped(f"no ledger at {path}; run it", 40).splitlines() == [
        "no ledger at", f"{path};", "run it",
    ]  # fmt: skip


def test_a_terminal_gets_wrapped_lines_and_a_file_whole_ones(monkeypatch, capsys):
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((60, 24)))
    options.complain(FAULTS)
    assert capsys.readouterr().err == FAULTS + "\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    options.complain(FAULTS)
    assert max(map(len, capsys.readouterr().err.splitlines())) <= 60


def test_no_slots_are_refused_while_arguments_are_parsed(capsys):
    with pytest.raises(SystemExit, match="2"):
        search.main(["--slots", "0"])
    assert "argument --slots: 0: give 1 or more" in capsys.readouterr().err
