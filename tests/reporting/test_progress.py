"""Counts, pace and complaints from ledger records, on a terminal and off it."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from aim_tune.ledger import History
from aim_tune.reporting.progress import Progress, Tally, duration, waiting
from aim_tune.stats.simulate import (
    Outcome,
    World,
    example_study,
    simulated_events,
    simulated_history,
)

STUDY = example_study(blocks=2, twins=2, confirm=1, arms=("baseline", "aim"))  # 12 trainings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def show(records, *, terminal=False, seconds=1.0, **more):
    """Feed `records`, `seconds` between two trainings; returns the output."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=160, force_terminal=terminal)
    with Progress(STUDY, console=console, clock=clock, **more) as progress:
        for record in records:
            clock.now += seconds * (record["event"] == "training_done")
            progress.event(record)
        left = progress.time_left()
    return out.getvalue(), left


def events(requests=None, play=None):
    return list(simulated_events(STUDY, play or World(effects={}).play, requests=requests))


def test_plain_lines_count_trainings_and_come_every_ten_seconds():
    text, left = show(events(), seconds=2.0)
    lines = text.splitlines()
    assert lines[0].startswith(
        "1/12 trainings · about 22 s left · block 1 of 2, twin · best validation:"
    )
    assert lines[1].startswith("6/12 trainings · about 12 s left · block 1 of 2, confirm")
    assert lines[-1].startswith("12/12 trainings · best validation:")
    assert len(lines) == 4
    assert left == ""


def test_time_left_is_pace_times_what_is_left():
    _, left = show(events(requests=2), seconds=60.0)  # 4 of 12 done in 4 minutes
    assert left == "about 8 min left"


def test_the_pace_is_unknown_until_every_slot_has_finished_one():
    _, left = show(events(requests=1), slots=3)
    assert left == ""


def test_an_earlier_run_counts_as_done_but_not_as_pace():
    history = simulated_history(STUDY, World(effects={}).play, requests=3)
    rest = events()[1 + sum(1 for r in events(requests=3)) - 1 :]
    text, _ = show(rest, seconds=2.0, history=history)
    assert text.splitlines()[0].startswith("7/12 trainings · about 10 s left")


def test_best_per_arm_is_the_largest_validation_accuracy():
    def play(request, arm):
        best = {"baseline": 0.5, "aim": 0.6}[arm]
        return Outcome(
            val_accuracy=best if request.position == "block/0/twin/1" else 0.1,
            bits=np.ones(4, dtype=bool),
        )

    text, _ = show(events(play=play))
    assert "best validation: baseline 50.0 %, aim 60.0 %" in text.splitlines()[-1]


def test_what_went_wrong_is_said_at_once_and_counted():
    def play(request, arm):
        if arm == "aim" and request.position == "block/0/twin/0":
            return Outcome(val_accuracy=0.2, status="diverged")
        return Outcome(val_accuracy=0.5, bits=np.ones(4, dtype=bool))

    lost = {
        "event": "job_lost", "position": "block/0/twin/1", "arms": ["aim"], "reason": "worker killed",
    }  # fmt: skip
    text, _ = show([*events(play=play), lost])
    assert "block/0/twin/0 aim diverged\n" in text
    assert "lost block/0/twin/1 (aim): worker killed\n" in text
    assert text.splitlines()[-1].endswith("1 diverged, 1 lost")


def test_a_reused_result_counts_as_done():
    tally = Tally(study=STUDY)
    first = next(r for r in events() if r["event"] == "asked")
    tally.add({**first, "reused_from": "explore/0"})
    assert (len(tally.finished), tally.here) == (2, 0)


def test_a_result_told_twice_counts_once_and_added_blocks_raise_the_plan():
    tally = Tally(study=STUDY)
    done = next(r for r in events() if r["event"] == "training_done")
    tally.add(done)
    tally.add(done)
    assert (len(tally.finished), tally.here, tally.planned) == (1, 1, 12)
    tally.add({"event": "extended", "blocks": 3})
    assert tally.planned == 18


def picture(progress, width):
    """The live view as it stands now."""
    console = Console(file=io.StringIO(), width=width)
    console.print(progress._picture())
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_view_fits_the_terminal_in_every_stage(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    clock = Clock()
    seen = set()
    with Progress(STUDY, console=console, clock=clock, slots=2) as progress:
        for record in events():
            clock.now += 500.0
            progress.event(record)
            lines = picture(progress, width)
            assert len(lines) <= 3
            assert all(len(line) <= width for line in lines)
            assert "/12 trainings" in lines[0]
            seen.add(lines[1].strip())
    assert "starting · 0 of 2 slots training" in seen
    assert "block 1 of 2, twin · 1 of 2 slots training" in seen
    assert "block 2 of 2, confirm · 0 of 2 slots training" in seen


def test_what_is_said_above_the_bar_breaks_between_words():
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=True, color_system=None)
    lost = {"event": "job_lost", "position": "explore/0", "arms": ["aim"],
            "reason": "the worker was killed from outside, for want of memory"}  # fmt: skip
    with Progress(STUDY, console=console) as progress:
        progress.event(lost)
    text = " ".join(out.getvalue().split())
    assert "lost explore/0 (aim): the worker was killed from outside, for want of memory" in text


def test_idle_slots_are_said_once_while_it_runs_and_at_its_end():
    out, clock, history = io.StringIO(), Clock(), History()
    history.apply({"event": "opened", "slots": 3, "time": 0.0})
    study = example_study(blocks=6, twins=2, confirm=1, arms=("baseline", "aim"))
    console = Console(file=out, width=160)
    with Progress(study, console=console, clock=clock, slots=3, history=history) as progress:
        for record in simulated_events(study, World(effects={}).play):
            clock.now += 5.0
            history.apply(record)
            progress.event(record)
    lines = out.getvalue().splitlines()
    assert sum("slots training on average" in line and "Only" in line for line in lines) == 2
    assert " of 3 slots training on average (" in lines[-1]


def test_waiting_is_said_on_a_terminal_only():
    terminal = Console(file=io.StringIO(), width=80, force_terminal=True)
    file = Console(file=io.StringIO(), width=80)
    for console in (terminal, file):
        with waiting(console, "Starting the engine"):
            pass
    assert "Starting the engine..." in terminal.file.getvalue()
    assert file.file.getvalue() == ""


def test_on_a_terminal_a_bar_is_drawn_and_one_line_stays():
    text, _ = show(events(), terminal=True)
    assert "12/12 trainings" in text
    assert "\x1b[" in text  # the live view moves the cursor
    assert text.rstrip().splitlines()[-1].endswith("%")


def test_text_of_a_study_is_not_markup():
    lost = {"event": "job_lost", "position": "explore/0", "arms": ["[red]x"], "reason": "[/] gone"}
    text, _ = show([lost])
    assert "lost explore/0 ([red]x): [/] gone" in text


def test_durations_read_well():
    assert [duration(s) for s in (0.2, 59, 61, 3599, 7500)] == [
        "1 s", "59 s", "1 min", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
