"""Studies of an add-on that adds nothing, with real trainings: the arms differ by chance alone, and seldom
does the verdict take chance for an effect."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from scipy import stats

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "real_nulls.py"


@pytest.fixture(scope="module")
def nulls() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_nulls", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_nulls"] = module
    spec.loader.exec_module(module)
    return module


def test_the_arms_share_everything_but_their_random_weights(nulls):
    history, verdict = nulls.one_study(0)
    assert len(history.trainings) == 6 * (3 + 1) * 2
    for request in history.requests.values():
        first, second = history.of(request.position)
        assert first.streams == second.streams
        assert first.result.weights_sha256 != second.result.weights_sha256
        assert first.result.parameters == second.result.parameters
    twins = [r for r in history.requests.values() if r.stage == "twin"]
    assert all(r.arms["baseline"].shared == r.arms["nothing"].shared for r in twins)
    assert verdict.twin_correlation > 0.5  # the shared draw moves both arms
    assert len(set(verdict.primary.differences_points)) > 1


def test_every_study_has_data_of_its_own_and_a_seed_repeats_it(nulls):
    (history, verdict), (_, again), (_, other) = map(nulls.one_study, (1, 1, 2))
    assert verdict == again or verdict.effect_points == again.effect_points  # times differ
    assert other.primary.differences_points != verdict.primary.differences_points
    assert history.looks[0]["examples"] == 797


def test_false_verdicts_are_counted_with_their_interval(nulls):
    row = {
        "claim": "new_examples", "effect": 1.0, "covered": False, "block_sd": 2.0, "accuracy": 50.0,
        "trainings": 48,
    }  # fmt: skip
    verdicts = ["better", "worse", "equivalent"] + ["no_evidence"] * 17
    found = nulls.summary([{**row, "verdict": v} for v in verdicts])
    assert (found["false"], found["share"], found["trainings"]) == (2, 0.1, 960)
    # Wilson by hand: z = 1.96, (.1 + z^2/40 +- z sqrt(.1 x .9 / 20 + z^2/1600)) / (1 + z^2/20)
    assert found["interval"] == pytest.approx([0.02787, 0.30104], abs=1e-4)


@pytest.mark.slow  # 9,600 real trainings: 5 minutes of an idle core
def test_200_studies_of_nothing_find_nothing(nulls, tmp_path):
    """If 5 % of studies erred, more than 16 of 200 would in 2.4 % of runs; seeds are fixed: one number."""
    assert nulls.main(["--studies", "200", "--json", str(tmp_path / "figures.json")]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["studies"], found["trainings"]) == (200, 9600)
    assert stats.binom.sf(16, 200, 0.05) < 0.025
    assert found["false"] <= 16
