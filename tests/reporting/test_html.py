"""The report: self-contained, escaped, deterministic, small; the sentence comes first."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from aim_tune.reporting.html import _plan_text, report_html, write_report
from aim_tune.reporting.words import sentence
from aim_tune.stats import decide
from aim_tune.stats.simulate import World, example_study, simulated_history

VOID = {"meta", "br", "img", "link"}


class Balance(HTMLParser):
    """Collects tags that are closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def page_of(study, requests=None, importances=None, effects=None):
    history = simulated_history(
        study, World(effects=effects or {"aim": 3.0}).play, requests=requests
    )
    return report_html(study, history, decide(study, history), importances)


@pytest.fixture(scope="module")
def page():
    return page_of(example_study(blocks=6, explore=2))


def test_tags_are_balanced(page):
    parser = Balance()
    parser.feed(page)
    assert parser.wrong == []
    assert parser.open == []


def test_nothing_is_fetched_and_nothing_runs(page):
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"|url\(([^)]*)\)|@import", page)
    assert all((a or b).startswith("#") for a, b in addresses)
    assert "<script" not in page
    assert "<link" not in page
    assert set(re.findall(r"https?://[^\"' <]*", page)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


def test_the_verdict_sentence_is_the_first_text_after_its_badge(page):
    study = example_study(blocks=6, explore=2)
    verdict = decide(study, simulated_history(study, World(effects={"aim": 3.0}).play))
    body = page[page.index("<body>") :]
    assert f"<h1>{sentence(verdict)}</h1>" in body
    assert body.index("<h1>") < body.index("<svg") < body.index("<table")


def test_every_picture_has_a_sentence_and_a_label(page):
    figures = re.findall(r"<figure.*?</figure>", page, flags=re.DOTALL)
    assert len(figures) == 10
    for figure in figures:
        (caption,) = re.findall(r"<figcaption>(.*?)</figcaption>", figure)
        assert len(caption) > 20
        assert 'aria-label="' in figure


def test_light_dark_phone_and_paper_are_provided_for(page):
    for rule in (
        "prefers-color-scheme:dark",
        "max-width:560px",
        "@media print",
        "width=device-width",
    ):
        assert rule in page
    assert page.count("--arm1:") == 2
    assert "arms*/" not in page


def test_text_of_users_is_escaped():
    study = replace(example_study(blocks=3), name="<script>alert('x')</script> & co")
    study = replace(study, arms=("baseline", "aim", "<b>wide</b>"))
    page = page_of(study)
    assert "<script>" not in page
    assert "<b>wide" not in page
    assert "&lt;script&gt;alert" in page
    assert "&amp; co" in page


def test_provenance_and_every_training_are_there(page):
    study = example_study(blocks=6, explore=2)
    for fact in (
        study.study_hash,
        "fedcba9876543210",
        "0123456789abcdef",
        "block/5/confirm/1",
        "log_uniform",
    ):
        assert fact in page
    assert len(re.findall(r"<td class=\"text\">(?:block|explore)/", page)) == 3 * (2 + 6 * 7)


def test_equal_input_gives_an_equal_file(page, tmp_path):
    study = example_study(blocks=6, explore=2)
    history = simulated_history(study, World(effects={"aim": 3.0}).play)
    path = write_report(tmp_path / "report.html", study, history, decide(study, history))
    assert path.read_text(encoding="utf-8") == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_report_of_210_trainings_stays_small():
    assert len(page_of(example_study()).encode()) < 1_000_000


@pytest.mark.parametrize("requests", [0, 1, 9])
def test_partial_histories_have_a_page(requests):
    page = page_of(example_study(blocks=3, explore=1), requests=requests)
    assert '<span class="tag">interim</span>' in page


def test_plain_search_has_a_page():
    page = page_of(example_study(blocks=0, explore=4, arms=("aim",)))
    assert "No comparison was asked: plain search (aim 4 trainings)." in page
    assert "The best found" in page


def test_an_interim_page_shows_no_figure_that_is_only_valid_at_the_end(page):
    partial = page_of(example_study(blocks=8), requests=6 * 7)
    for figure in ("better in a new block", "could have seen</dt>", "sign-flip"):
        assert figure in page
        assert figure not in partial


@pytest.mark.parametrize(
    ("gate", "ended"), [("look/4", "ended by a planned look"), ("block/4", "ended by the budget")]
)
def test_a_study_that_ended_early_says_by_what(gate: str, ended: str) -> None:
    study = example_study(blocks=6, twins=1, confirm=1)
    history = simulated_history(study, World(effects={}).play, requests=8)
    assert _plan_text(study, history) == "4 of 6 blocks of 1 twin and 1 confirm pair"
    history.apply({"event": "gate", "gate": gate, "blocks": 4, "open": False, "verdict": None})
    assert _plan_text(study, history) == f"4 of 6 blocks of 1 twin and 1 confirm pair, {ended}"
