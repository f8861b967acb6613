"""A study on two types of GPU: times stay within a type, and what cannot be compared is said. By hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from aim_tune.errors import UserError
from aim_tune.ledger import History
from aim_tune.protocol import Told
from aim_tune.protocol.blocks import Matched
from aim_tune.reporting.html import report_html
from aim_tune.reporting.pictures import pictures
from aim_tune.reporting.side_by_side import Result, side_by_side_html
from aim_tune.reporting.words import document, notes
from aim_tune.spec.study import Explore, Study
from aim_tune.stats import decide
from aim_tune.stats.explored import pareto_set
from aim_tune.stats.result import Verdict
from aim_tune.stats.simulate import World, example_study, simulated_events
from aim_tune.tracking.content import training_content
from aim_tune.tracking.notes import verdict_note

FAST, SLOW = "cuda: NVIDIA H200", "cuda: NVIDIA A100"
STEP_MS = {  # block -> arm -> ms a step; block 2 ran on the slow type
    0: {"baseline": 10.0, "aim": 11.0, "frozen": 10.5},
    1: {"baseline": 20.0, "aim": 24.0, "frozen": 22.0},
    2: {"baseline": 40.0, "aim": 60.0, "frozen": 44.0},
}
Change = Callable[[dict[str, Any], str, str], Mapping[str, Any]]
"""(result, position, arm) -> what is different in it."""


def by_block(result: dict[str, Any], position: str, arm: str) -> dict[str, Any]:
    block = int(position.split("/")[1])
    step_ms = STEP_MS[block][arm]
    return {
        "device": SLOW if block == 2 else FAST,
        "step_ms": step_ms,
        "seconds": step_ms / 10,
        "peak_mib": 100.0 * step_ms,
    }


def history_of(study: Study, change: Change) -> History:
    """The simulated study with other devices and times; validation passes take the training's seconds."""
    records = list(simulated_events(study, World(effects={"aim": 1.0}).play))
    results = {}
    for r in records:
        if r["event"] == "training_done":
            r["result"] |= change(r["result"], r["position"], r["arm"])
            results[r["position"], r["arm"]] = r["result"]
    history = History()
    for r in records:
        if r["event"] in ("training_started", "epoch"):
            result = results[r["position"], r["arm"]]
            r |= {"device": result["device"]} if r["event"] == "training_started" else {
                "seconds": result["seconds"] * r["step"] / result["steps"]}  # fmt: skip
        history.apply(r)
    return history


@pytest.fixture(scope="module")
def study() -> Study:
    return example_study(blocks=3, twins=2, confirm=1)


@pytest.fixture(scope="module")
def history(study: Study) -> History:
    return history_of(study, by_block)


@pytest.fixture(scope="module")
def verdict(study: Study, history: History) -> Verdict:
    return decide(study, history)


def test_step_times_are_of_the_type_that_most_trainings_ran_on(verdict: Verdict) -> None:
    assert list(verdict.devices) == [FAST, SLOW]
    assert [d.trainings for d in verdict.devices.values()] == [18, 9]  # 3 arms x 3 x blocks
    # over all blocks the medians would be 20 and 24
    assert {a: s.step_ms for a, s in verdict.arms.items()} == {
        "baseline": 15.0, "aim": 17.5, "frozen": 16.25,
    }  # fmt: skip
    assert verdict.devices[SLOW].step_ms == {"baseline": 40.0, "aim": 60.0, "frozen": 44.0}


def test_a_ratio_is_taken_within_requests_and_within_a_type(verdict: Verdict) -> None:
    # 11/10 and 24/20; the ratio of the medians would be 17.5 / 15 = 1.167, that over all types 1.2
    assert verdict.devices[FAST].step_ratio == {"aim": 1.15, "frozen": 1.075}
    assert verdict.devices[SLOW].step_ratio == {"aim": 1.5, "frozen": 1.1}


def test_the_notes_name_the_types_and_what_is_not_compared(verdict: Verdict) -> None:
    (line,) = (n for n in notes(verdict) if "types of device" in n)
    assert line == (
        "Trainings ran on 2 types of device, and times of different types are not compared: "
        "cuda: NVIDIA H200 (18 trainings; a step of aim takes 1.15 times one of baseline); "
        "cuda: NVIDIA A100 (9 trainings; a step of aim takes 1.50 times one of baseline). "
        "Single times are those on cuda: NVIDIA H200; totals of seconds are not set side by side."
    )


def test_on_one_type_there_is_nothing_to_say(study: Study) -> None:
    one = decide(study, history_of(study, lambda r, p, a: {**by_block(r, p, a), "device": FAST}))
    assert not one.mixed
    assert one.arms["aim"].step_ms == 24.0
    assert one.devices[FAST].step_ratio["aim"] == 1.2  # of 1.1, 1.2 and 1.5
    assert not [n for n in notes(one) if "of device" in n]


def test_pictures_with_a_time_axis_are_of_one_type_and_say_so(
    study: Study, history: History, verdict: Verdict
) -> None:
    drawn = {p.name: p.sentence for p in pictures(study, history, verdict)}
    # twins of the fast blocks: (1.0 + 2.0) / 2 and (1.1 + 2.4) / 2 seconds; over all 2.33 and 3.17
    assert (
        "one trial takes 1.75 s against 1.5 s on cuda: NVIDIA H200 (6 trainings elsewhere)"
        in (drawn["tuning-seconds"])
    )
    assert "on cuda: NVIDIA H200 (3 trainings elsewhere)" in drawn["target"]
    assert " of 2 runs" in drawn["target"]
    assert "aim takes 1.15 times the step time" in drawn["pareto"]
    assert "1.17 times the peak MiB of baseline on cuda: NVIDIA H200" in drawn["pareto"]
    assert "seconds on different types of device are not compared" in drawn["budget"]
    assert "times the seconds" not in drawn["budget"]


def test_the_page_shows_each_type_and_no_total_of_seconds(
    study: Study, history: History, verdict: Verdict
) -> None:
    page = report_html(study, history, verdict)
    row = page.split(f'<td class="text">{SLOW}</td>')[1].split("</tr>")[0]
    assert (
        row
        == "<td>9</td><td>40.00</td><td>60.00 <small>× 1.50</small></td><td>44.00 <small>× 1.10</small></td>"
    )
    row = page.split("aim</span></td>")[1].split("</tr>")[0]
    assert "<td>17.50</td>" in row
    assert "<td>—</td>" in row  # 9 trainings of 1.1 to 6 seconds: no total
    assert (
        page.count(f'<td class="text">{SLOW}</td>') == 1 + 9
    )  # and every training says where it ran


def test_side_by_side_has_a_ratio_per_type(
    study: Study, history: History, verdict: Verdict, tmp_path: Any
) -> None:
    one = Result(study=study, history=history, verdict=verdict, report=tmp_path / "report.html")
    page = side_by_side_html([one, one], tmp_path)
    assert page.count(f"× 1.15 on {FAST}<br>× 1.50 on {SLOW}") == 2


def test_the_note_in_mlflow_has_a_table_by_type(verdict: Verdict) -> None:
    note = verdict_note(document(verdict), "x")
    assert "Times of different types of device are not compared" in note
    assert (
        f"| {SLOW} (9)&emsp; | 40.00 ms&emsp; | 60.00 ms, × 1.50&emsp; | 44.00 ms, × 1.10&emsp; |"
        in note
    )


def test_arms_that_never_shared_a_type_have_no_ratio(study: Study) -> None:
    """pack: arm on a cluster of two types, by the worst chance."""
    apart = history_of(
        study, lambda r, p, a: {**by_block(r, p, a), "device": SLOW if a == "aim" else FAST}
    )
    verdict = decide(study, apart)
    assert verdict.arms["aim"].step_ms is None
    assert verdict.devices[SLOW].step_ratio == {}
    assert "aim" not in verdict.devices[FAST].step_ratio
    drawn = {p.name: p.sentence for p in pictures(study, apart, verdict)}
    assert "tuning-seconds" not in drawn
    assert "step time" not in drawn.get("pareto", "")
    assert "on one type of device" in report_html(study, apart, verdict).split("not drawn")[1]


def test_arms_of_one_type_in_different_requests_are_compared_by_their_medians(study: Study) -> None:
    """aim on the fast type in block 0 alone, the baseline in blocks 1 and 2 alone."""

    def change(result: dict[str, Any], position: str, arm: str) -> dict[str, Any]:
        fast = (position.split("/")[1] == "0") == (arm == "aim")
        return {**by_block(result, position, arm), "device": FAST if fast else SLOW}

    verdict = decide(study, history_of(study, change))
    assert verdict.devices[FAST].step_ratio["aim"] == pytest.approx(11 / 30, rel=1e-5)


def test_a_training_that_moved_to_another_type_has_no_time(study: Study, history: History) -> None:
    """Its first attempt was lost on the slow type; what it reached there went on on the fast one."""
    moved = history_of(study, lambda r, p, a: {**by_block(r, p, a), "device": FAST})
    training = moved.trainings["block/2/confirm/0", "aim"]
    training.devices = (SLOW, FAST)
    assert training.device == ""
    verdict = decide(study, moved)
    assert verdict.arms["aim"].step_ms == 17.5
    assert verdict.devices[FAST].trainings == 26
    assert verdict.moved == 1
    assert "1 training went on on another type of device after a fault: without a time." in notes(
        verdict
    )
    assert training_content(study, moved, training).tags["aim.device"] == f"{SLOW}, then {FAST}"
    assert Told.of(training).step_ms is None


def test_what_was_measured_on_one_type_is_limited_to_it(study: Study, history: History) -> None:
    verdict = decide(study, history)
    arms = {**verdict.arms, "time_matched": verdict.arms["frozen"]}
    matched = replace(verdict, arms=arms, matched_on=FAST)
    assert (
        "time_matched costs what aim costs on cuda: NVIDIA H200, where it was measured; 9 trainings of the "
        "arms ran elsewhere, where that need not hold."
    ) in notes(matched)
    there = replace(matched, devices={FAST: verdict.devices[FAST]})
    assert not [n for n in notes(there) if "measured" in n]


def test_a_match_request_of_two_types_is_refused(study: Study) -> None:
    timed = Told(score=None, step_ms=10.0, device=FAST)
    told = {"baseline": timed, "aim": replace(timed, device=SLOW)}
    with pytest.raises(
        UserError, match=r"baseline on cuda: NVIDIA H200, aim on cuda: NVIDIA A100.*--fork"
    ):
        Matched.of(study, told)
    assert Matched.of(study, dict.fromkeys(told, timed)).longer == 1.0


def test_a_pareto_set_of_step_times_is_of_one_type() -> None:
    """Trial 3 would beat all others, but by a step time of another type."""
    study = example_study(blocks=0, explore=4, arms=("aim",))
    explore = replace(study.protocol.explore, objectives=("val_accuracy", "step_ms"))
    study = replace(study, protocol=replace(study.protocol, explore=explore))
    figures = [(0.7, 5.0, SLOW), (0.8, 6.0, SLOW), (0.75, 7.0, SLOW), (0.9, 1.0, FAST)]

    def change(result: dict[str, Any], position: str, arm: str) -> dict[str, Any]:
        accuracy, step_ms, device = figures[int(position.split("/")[1])]
        return {"val_accuracy": accuracy, "step_ms": step_ms, "device": device}

    history = history_of(study, change)
    assert [o.position for o in pareto_set(study, history, "aim")] == ["explore/1", "explore/0"]
    verdict = decide(study, history)
    (line,) = (n for n in notes(verdict) if n.startswith("Explore ran on"))
    assert f"its trade-offs are of {SLOW} alone, without the trainings on {FAST} 1" in line
    drawn = {p.name: p.sentence for p in pictures(study, history, verdict)}
    assert f"Explore's trainings on {SLOW}, and those" in drawn["trade-offs"]
    assert isinstance(study.protocol.explore, Explore)
    sizes = replace(explore, objectives=("val_accuracy", "parameters"))
    by_size = replace(study, protocol=replace(study.protocol, explore=sizes))
    assert [o.position for o in pareto_set(by_size, history, "aim")] == ["explore/3"]
