"""verdict.json: every key is named here and explained in the documentation; the file reads back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aim_tune.ledger import History
from aim_tune.reporting.words import document, sentence
from aim_tune.stats import decide, slot_use
from aim_tune.stats.result import Verdict
from aim_tune.stats.simulate import World, example_study, simulated_events, simulated_history

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reading_a_verdict.md"

KEYS = {
    "verdict", "sentence", "notes", "arm", "reference", "clearly", "small", "tests_disagree", "reason",
    "effect_points", "ci95_points", "ci90_points", "blocks", "blocks_planned", "mde_points",
    "p_better_new_block", "sign_flip_p", "wins", "attribution", "untrained", "metric", "unit",
    "higher_is_better", "claim", "interim", "extended", "comparisons", "arms", "budget",
    "devices", "moved", "matched_on",
    "explore_budget", "twins", "sampler", "search_fraction", "rope_points", "alpha", "looks", "look",
    "out_of_budget", "design_for", "explored", "declared_confounds", "blocks_to_decide", "reach_points",
    "reach_limit", "gap", "twin_correlation", "block_correlation", "edges", "test_examples",
    "study_number", "study", "study_hash", "slot_use",
}  # fmt: skip
COMPARISON = {
    "arm", "reference", "effect_points", "ci95_points", "ci90_points", "ci95_block_points", "p_value",
    "sign_flip_p", "adjusted", "differences_points", "wins", "ties", "p_better_new_block",
    "mde_points", "lost_pairs", "covers_examples",
}  # fmt: skip
ARM = {"mean_points", "sd_points", "runs", "parameters", "step_ms"}
BUDGET = {
    "trials", "steps", "steps_done", "seconds", "test_looks", "failed", "oom", "diverged", "early", "pruned",
}  # fmt: skip
GAP = {"trials", "points", "closing"}
DEVICE = {"trainings", "step_ms", "step_ratio"}
USE = {
    "slots", "trainings", "seconds", "training_s", "share", "explore", "looks", "end", "between",
}  # fmt: skip
EDGE = {"arm", "setting", "end", "limit", "median", "drift", "blocks", "narrowed"}
EXPLORED = {
    "trials", "arms", "design", "ranges", "narrowed", "not_narrowed", "objectives", "pareto",
    "warm_start",
    "devices",
}  # fmt: skip


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    study = example_study(explore=4)
    world = World(effects={"aim": 2.0}, best_lr=1.0, steepness=20.0)  # beyond the range: warned of
    return decide(study, simulated_history(study, world.play), study_number=2)


@pytest.fixture(scope="module")
def written(verdict: Verdict) -> dict:
    study = example_study(explore=4)
    history = History()
    history.apply({"event": "opened", "slots": 2, "time": 0.0})
    for record in simulated_events(study, World(effects={}).play):
        history.apply(record)
    shown = document(verdict, slot_use(study, history))
    return json.loads(json.dumps(shown, allow_nan=False))


def test_every_key_is_there_and_none_else(written):
    assert set(written) == KEYS
    assert [set(c) for c in written["comparisons"].values()] == [COMPARISON] * 3
    assert [set(a) for a in written["arms"].values()] == [ARM] * 3
    assert [set(b) for b in written["budget"].values()] == [BUDGET] * 3
    assert [set(b) for b in written["explore_budget"].values()] == [BUDGET] * 3
    assert [set(d) for d in written["devices"].values()] == [DEVICE]
    assert set(written["gap"]) == GAP
    assert set(written["slot_use"]) == USE
    assert [set(e) for e in written["edges"]] == [EDGE] * len(written["edges"])
    assert written["edges"], "this world has a range that is too small"
    assert set(written["explored"]) == EXPLORED


def test_what_must_be_known_of_a_claim_is_said(written):
    assert (written["metric"], written["unit"], written["higher_is_better"]) == (
        "test_accuracy", "points", True,
    )  # fmt: skip
    assert written["claim"] in ("this_test_set", "new_examples")
    assert (written["interim"], written["study_number"]) == (False, 2)
    assert written["notes"][-1] == "2nd study on this test data."


def test_the_file_reads_back_and_says_the_same(verdict, written):
    again = Verdict.from_dict(written)
    assert again == verdict
    assert sentence(again) == written["sentence"]


def test_without_anything_to_say_the_keys_stay():
    study = example_study(blocks=0, explore=2)
    nothing = document(decide(study, simulated_history(study, World(effects={}).play, requests=0)))
    assert set(nothing) == KEYS
    assert nothing["effect_points"] is None


def test_the_page_explains_every_key():
    """In the tables and the last paragraph of its section on verdict.json."""
    section = PAGE.read_text().split("## verdict.json")[1]
    explained = set(re.findall(r"`([a-z0-9_]+)`", section))
    assert explained >= KEYS | COMPARISON | ARM | BUDGET | GAP | EDGE | EXPLORED | DEVICE | USE
