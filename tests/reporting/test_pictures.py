"""Pictures: valid SVG, equal bytes, the arms' colors, sentences that state what was put in."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from aim_tune.reporting.pictures import not_drawn, pictures
from aim_tune.reporting.plots import ARM_COLORS, arm_look, with_label
from aim_tune.reporting.plots_verdict import strip_png
from aim_tune.stats import decide
from aim_tune.stats.simulate import Outcome, World, example_study, simulated_history

IMPORTANCES = {
    "baseline": {"lr": (0.8, 0.7, 0.9)},
    "aim": {"lr": (0.3, 0.2, 0.4), "memory_shape": (0.6, 0.5, 0.7)},
}


def drawn(study, play, requests=None):
    history = simulated_history(study, play, requests=requests)
    return {p.name: p for p in pictures(study, history, decide(study, history), IMPORTANCES)}


@pytest.fixture(scope="module")
def whole():
    return drawn(example_study(blocks=6, explore=2), World(effects={"aim": 3.0}).play)


def test_a_comparison_has_all_pictures_in_reading_order(whole):
    assert list(whole) == [
        "verdict",
        "slopes",
        "twins",
        "tuning",
        "tuning-seconds",
        "target",
        "pareto",
        "importance",
        "curves",
        "ranks",
        "budget",
    ]  # fmt: skip  (slices need more than two explore trials)


def test_pictures_are_well_formed_and_bring_nothing_from_outside(whole):
    for picture in whole.values():
        ElementTree.fromstring(with_label(picture))
        links = re.findall(r"(?:href|src)=\"([^\"]*)\"|url\(([^)]*)\)", picture.svg)
        assert all((a or b).startswith("#") for a, b in links)
        assert "<style" not in picture.svg
        assert "font-family" not in picture.svg


def test_text_stays_text_and_colors_follow_the_page(whole):
    svg = whole["verdict"].svg
    assert ">aim − baseline</text>" in svg
    assert "currentColor" in svg
    assert f"var(--arm1,{ARM_COLORS[1]})" in svg
    assert "#000000" not in svg


def test_ids_of_two_pictures_never_meet(whole):
    ids = [i for p in whole.values() for i in re.findall(r' id="([^"]*)"', p.svg)]
    assert len(ids) == len(set(ids))


def test_equal_input_gives_equal_bytes(whole):
    again = drawn(example_study(blocks=6, explore=2), World(effects={"aim": 3.0}).play)
    assert {n: p.svg for n, p in again.items()} == {n: p.svg for n, p in whole.items()}


def test_an_arm_looks_the_same_everywhere():
    arms = ("aim", "baseline", "frozen")
    assert arm_look(arms, "baseline") == (ARM_COLORS[0], "o")
    assert arm_look(arms, "aim") == (ARM_COLORS[1], "s")
    assert arm_look(("baseline", "aim"), "aim") == arm_look(arms, "aim")


def test_slopes_count_the_blocks():
    def play(request, arm):
        wins = arm == "aim" and request.block in (0, 2)
        return Outcome(val_accuracy=0.5, bits=np.arange(100) < 50 + 3 * wins)

    names = drawn(example_study(blocks=3, twins=2, confirm=1, arms=("baseline", "aim")), play)
    assert names["slopes"].sentence.startswith(
        "aim is above baseline in 2 of 3 blocks and level in 1;"
    )


def test_twins_count_the_draws():
    def play(request, arm):
        better = arm == "aim" and request.position.endswith("/0")
        return Outcome(val_accuracy=0.6 if better else 0.5, bits=np.arange(100) < 50)

    names = drawn(example_study(blocks=3, twins=2, confirm=1, arms=("baseline", "aim")), play)
    assert "aim scores above baseline in 3 of 6 twins" in names["twins"].sentence
    assert "drawn" not in names["twins"].sentence


def test_of_many_twins_some_are_drawn_and_the_sentence_says_so(monkeypatch):
    def points(most):
        monkeypatch.setattr("aim_tune.reporting.plots.MOST_POINTS", most)
        study = example_study(blocks=5, twins=4, confirm=1, arms=("baseline", "aim"))
        picture = drawn(study, World(effects={"aim": 3.0}).play)["twins"]
        return picture.svg.count("<use "), picture.sentence

    (all_marks, all_said), (some_marks, some_said) = points(20), points(6)
    assert all_marks - some_marks == 20 - 5
    assert some_said == f"{all_said} One twin in 4 is drawn."


def test_importance_says_where_it_looks_at_some_trainings_only(whole, monkeypatch):
    assert "(fANOVA; whiskers" in whole["importance"].sentence
    monkeypatch.setattr("aim_tune.reporting.pictures.MOST_WEIGHED", 20)
    some = drawn(example_study(blocks=6, explore=2), World(effects={"aim": 3.0}).play)
    assert "(fANOVA of about 20 trainings, spread evenly" in some["importance"].sentence


def test_importance_names_the_first_setting_of_each_arm(whole):
    assert "lr for baseline (80 %), memory_shape for aim (60 %)" in whole["importance"].sentence


def test_budget_says_equal_and_counts_faults(whole):
    assert whole["budget"].sentence == (
        "Every arm was granted 42 trainings and 12,600 steps. "
        "No training failed, diverged or ran out of time."
    )

    def play(request, arm):
        if arm == "aim" and request.position == "block/0/twin/0":
            return Outcome(val_accuracy=None, status="oom", steps=0)
        return Outcome(val_accuracy=0.5, bits=np.arange(100) < 50)

    names = drawn(example_study(blocks=3, twins=2, confirm=1, arms=("baseline", "aim")), play)
    assert "aim: 1 failed, 0 diverged, 0 timed out." in names["budget"].sentence


def test_an_interim_page_shows_no_test_scores_but_the_anytime_interval():
    names = drawn(example_study(blocks=8), World(effects={"aim": 3.0}).play, requests=6 * 7 + 3)
    assert "slopes" not in names
    assert "anytime-valid" in names["verdict"].sentence


@pytest.mark.parametrize("requests", [0, 1, 3, 8])
def test_partial_histories_draw_what_they_have(requests):
    drawn(example_study(blocks=3, explore=1), World(effects={}).play, requests=requests)


def test_plain_search_shows_curves_importance_and_budget():
    names = drawn(example_study(blocks=0, explore=6, arms=("aim",)), World(effects={}).play)
    assert list(names) == ["importance", "curves", "ranks", "budget"]


def test_one_block_has_a_dot_and_no_interval():
    names = drawn(example_study(blocks=1), World(effects={"aim": 3.0}).play)
    assert "no interval" in names["verdict"].sentence


def test_each_picture_that_is_missing_says_why():
    study = example_study(blocks=3, twins=4, confirm=1)
    history = simulated_history(study, World(effects={"aim": 3.0}).play, requests=4)
    verdict = decide(study, history)
    lines = not_drawn(pictures(study, history, verdict), verdict)
    assert "slopes: shows test scores, and waits until every block is whole" in lines
    assert "memory: needs the add-on's first confirm run" in lines
    alone = example_study(blocks=0, explore=4, arms=("aim",))
    history = simulated_history(alone, World(effects={}).play)
    verdict = decide(alone, history)
    drawn = pictures(alone, history, verdict)
    lines = not_drawn(drawn, verdict)
    assert "twins: no arms were compared" in lines
    assert len(lines) + len(drawn) == 14


def test_the_verdict_strip_is_also_a_png_for_pages_that_take_no_svg(whole):
    study = example_study(blocks=3, twins=4, confirm=1)
    history = simulated_history(study, World(effects={"aim": 3.0}).play)
    png = strip_png(decide(study, history))
    assert png.startswith(b"\x89PNG")
    assert 3_000 < len(png) < 60_000
    assert png == strip_png(decide(study, history))
    alone = example_study(blocks=0, explore=4, arms=("aim",))
    assert strip_png(decide(alone, simulated_history(alone, World(effects={}).play))) is None
