"""The report in a real browser: nothing sticks out on a phone, no text of a picture is tiny or covered."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import escape, unescape

import numpy as np
import pytest

from aim_tune.reporting.html import report_html
from aim_tune.reporting.side_by_side import Result, side_by_side_html
from aim_tune.spec.study import Component
from aim_tune.stats import decide
from aim_tune.stats.simulate import World, example_study, simulated_history

LEAST_PX = 8.5
"""Height of a box of text: below it a tick label is hard to read."""

MEASURE = """
const page = frame.contentDocument, found = {width: page.documentElement.scrollWidth, small: [], covered: []};
for (const svg of page.querySelectorAll("svg")) {
  const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect(),
    /rotate\\(-?[1-9]/.test(t.outerHTML)]);
  const name = svg.closest("figure").id;
  for (const [text, box, turned] of boxes) {
    if (!turned && box.height < LEAST) found.small.push([name, text, box.height]);
    for (const [other, b, t] of boxes) {
      const wide = Math.min(box.right, b.right) - Math.max(box.left, b.left);
      const high = Math.min(box.bottom, b.bottom) - Math.max(box.top, b.top);
      if (text < other && !turned && !t && wide > 1 && high > 3) found.covered.push([name, text, other]);
    }
  }
}
document.getElementById("out").textContent = JSON.stringify(found);
"""


CUT = """
const page = frame.contentDocument;
const cut = [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).length;
const found = {width: page.documentElement.scrollWidth, cut};
document.getElementById("out").textContent = JSON.stringify(found);
"""


def measured(page: str, script: str, width: int, browser, folder) -> dict:
    """What a script finds on the page in a frame of this width."""
    (folder / "page.html").write_text(
        f'<!doctype html><meta charset="utf-8"><iframe id="frame" style="width:{width}px;height:900px;'
        f'border:0" srcdoc="{escape(page, quote=True)}"></iframe><pre id="out"></pre><script>'
        f'const frame = document.getElementById("frame"); frame.onload = () => {{{script}}};</script>'
    )
    dom = browser.dom((folder / "page.html").as_uri(), 3000)
    return json.loads(unescape(re.findall(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[-1]))


@pytest.fixture(scope="module")
def page() -> str:
    study = example_study(blocks=6, twins=4, confirm=1, explore=8)
    history = simulated_history(study, World(effects={"aim": 3.0}).play)
    shares = {"lr": (0.8, 0.7, 0.9), "weight_decay": (0.2, 0.1, 0.3)}
    rng = np.random.default_rng(0)
    importances = {
        arm: {k: tuple(rng.permutation(v)) for k, v in shares.items()} for arm in study.arms
    }
    return report_html(study, history, decide(study, history), importances)


@pytest.mark.parametrize("width", [375, 1280])
def test_nothing_sticks_out_and_every_text_of_a_picture_can_be_read(page, width, browser, tmp_path):
    found = measured(page, MEASURE.replace("LEAST", str(LEAST_PX)), width, browser, tmp_path)
    assert found["width"] <= width
    assert found["small"] == []
    assert found["covered"] == []


@pytest.mark.parametrize(("width", "cut"), [(375, 1), (1240, 0), (1600, 0)])
def test_the_table_of_several_studies_with_long_names_is_whole_on_a_laptop(
    width, cut, browser, tmp_path
):
    results = []
    for name in ("resnet50_on_small_dogs_with_published_memory", "shufflenet_v2_after_better"):
        study = replace(
            example_study(blocks=3, twins=2),
            name=name,
            backbone=Component(name="torchvision_shufflenet_v2_x1_0"),
            data=Component(name="image_folder"),
        )
        history = simulated_history(study, World(effects={"aim": 3.0}).play)
        verdict = decide(study, history)
        report = tmp_path / name / "report.html"
        results.append(Result(study=study, history=history, verdict=verdict, report=report))
    found = measured(side_by_side_html(results, tmp_path), CUT, width, browser, tmp_path)
    assert found["width"] <= width
    assert found["cut"] == cut  # on a phone it scrolls, with the names in place
