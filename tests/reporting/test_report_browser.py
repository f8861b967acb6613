"""The report in a real browser: nothing sticks out on a phone, no text of a picture is tiny or covered."""

from __future__ import annotations

import json
import re
from html import escape, unescape

import numpy as np
import pytest

from aim_tune.reporting.html import report_html
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
    script = MEASURE.replace("LEAST", str(LEAST_PX))
    (tmp_path / "page.html").write_text(
        f'<!doctype html><meta charset="utf-8"><iframe id="frame" style="width:{width}px;height:900px;'
        f'border:0" srcdoc="{escape(page, quote=True)}"></iframe><pre id="out"></pre><script>'
        f'const frame = document.getElementById("frame"); frame.onload = () => {{{script}}};</script>'
    )
    dom = browser.dom((tmp_path / "page.html").as_uri(), 3000)
    found = json.loads(unescape(re.findall(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[-1]))
    assert found["width"] <= width
    assert found["small"] == []
    assert found["covered"] == []
