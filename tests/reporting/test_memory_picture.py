"""12, what the memory learned: drawn from a training's record, left out where there is none."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np

from aim_tune.addons.pictures import MemoryPictures
from aim_tune.ledger import History
from aim_tune.reporting import plots_memory
from aim_tune.reporting.html import report_html
from aim_tune.reporting.plots import with_label
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats import decide
from aim_tune.stats.simulate import World, example_study, simulated_history


def studied(record: dict | None) -> tuple[Study, History]:
    study = example_study(blocks=3, twins=4, confirm=1, arms=(BASELINE, "aim"))
    history = simulated_history(study, World(effects={"aim": 3.0}).play)
    training = history.trainings["block/0/confirm/0", "aim"]
    training.result = replace(training.result, memory=record)
    return study, history


def record(written: int) -> dict:
    start = np.full((16, 4, 4), 1.0, np.float32)
    maps = np.zeros((written, 16, 4, 4), np.float32)
    for i in range(written):
        maps[i] = i
    labels = [3, 5, 3, 9][:written]
    return MemoryPictures.of(start, start + 0.5, maps, labels=labels).to_dict()


def test_the_sentence_says_how_far_it_moved_and_how_images_differ():
    picture = plots_memory.learned_memory(*studied(record(4)))
    assert picture.name == "memory"
    assert (
        "The 8 channels of 16 that moved most in the first confirm run of aim" in picture.sentence
    )
    assert "moved the numbers by 0.5 (root mean square, 1 at the start" in picture.sentence
    assert "100 % of the spread" in picture.sentence
    assert "between the 4 validation images" in picture.sentence
    for label in ("start", "end", "written, class 3", "written, class 9"):
        assert f">{label}</text>" in picture.svg


def test_memories_that_are_shared_or_never_written_say_so():
    shared = plots_memory.learned_memory(*studied(record(1)))
    assert shared.sentence.endswith("the last row is what updates write for all images alike.")
    still = plots_memory.learned_memory(*studied(record(0)))
    assert still.sentence.endswith("nothing rewrites this memory.")
    assert ">written</text>" not in still.svg


def test_the_picture_is_well_formed_and_brings_nothing_from_outside():
    study, history = studied(record(4))
    picture = plots_memory.learned_memory(study, history)
    ElementTree.fromstring(with_label(picture))
    links = re.findall(r"href=\"([^\"]{0,22})", picture.svg)
    assert len([x for x in links if x.startswith("data:image/png;base64,")]) == 6
    assert all(x.startswith(("#", "data:image/png;base64,")) for x in links)
    assert picture.svg == plots_memory.learned_memory(study, history).svg
    page = report_html(study, history, decide(study, history))
    assert '<figure id="memory"' in page


def test_without_a_record_or_with_a_damaged_one_the_picture_is_left_out():
    assert plots_memory.learned_memory(*studied(None)) is None
    assert plots_memory.learned_memory(*studied({**record(4), "shape": [1, 2, 3, 4]})) is None
