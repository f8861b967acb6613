"""What explore came to, by hand: design, ranges, counts per arm, Pareto sets; in words and in the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from aim_tune.errors import UserError
from aim_tune.ledger import History
from aim_tune.protocol.best import best_config
from aim_tune.reporting.html import report_html
from aim_tune.reporting.plots_explore import explore_rows, trade_offs
from aim_tune.reporting.words import notes
from aim_tune.reporting.words_explore import said
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.explored import explore_facts, pareto_set
from aim_tune.stats.simulate import Outcome, example_study, simulated_history
from aim_tune.stats.verdict import Verdict, decide

BITS = np.ones(10, dtype=bool)


def with_(study: Study, **changes) -> Study:
    explore = replace(study.protocol.explore, **changes)
    return replace(study, protocol=replace(study.protocol, explore=explore))


def study_of(**changes) -> Study:
    plan = {"blocks": 2, "twins": 2, "confirm": 1, "explore": 24, "arms": (BASELINE, "aim")}
    return with_(example_study(**plan), **changes)


def scored(request, arm) -> Outcome:
    """Best at lr 0.01."""
    rate = request.arms[arm].shared["lr"]
    return Outcome(val_accuracy=float(0.9 - 0.1 * np.log10(rate / 0.01) ** 2), bits=BITS)


def test_the_design_is_the_one_that_the_blocks_use():
    study = study_of()
    history = simulated_history(study, scored)
    found = explore_facts(study, history)
    first = history.trainings["block/0/twin/0", "aim"].point.addon
    assert found.design == json.loads(json.dumps(dict(first)))
    assert (found.trials, found.arms, found.pareto, found.not_narrowed) == (
        24, (BASELINE, "aim"), {}, "",
    )  # fmt: skip
    assert found.ranges["lr"] == {"log_uniform": [1e-3, 1e-1]}
    early = simulated_history(study, scored, requests=24)
    assert explore_facts(study, early).design is None
    assert explore_facts(example_study(), History()) is None


def test_narrowed_ranges_stand_in_the_verdict_the_notes_and_the_report():
    study = study_of(narrow=True)
    history = simulated_history(study, scored)
    verdict = decide(study, history)
    assert verdict.explored.narrowed["lr"] == {"log_uniform": [1e-3, 1e-1]}
    low, high = verdict.explored.ranges["lr"]["log_uniform"]
    assert 1e-3 < low < 1e-2 < high < 1e-1
    text = f"lr {low:.3g} to {high:.3g} of 0.001 to 0.1"
    assert any(text in line for line in notes(verdict))
    page = report_html(study, history, verdict)
    assert f"{low:.3g} to {high:.3g} (asked: 0.001 to 0.1)" in page
    again = Verdict.from_dict(json.loads(json.dumps(verdict.to_dict())))
    assert again.explored == verdict.explored


def test_too_few_trials_are_said():
    study = with_(study_of(narrow=True), trials=12)
    verdict = decide(study, simulated_history(study, scored))
    assert "The ranges are not narrowed: 12 different trials are too few; 20 are needed." in notes(
        verdict
    )


def test_stopped_diverged_and_memory_are_counted_per_arm():
    def play(request, arm):
        number = int(request.position.split("/")[-1])
        if request.stage == "explore" and arm == "aim" and number < 6:
            status = ("pruned", "pruned", "pruned", "oom", "diverged", "ok")[number]
            return replace(scored(request, arm), status=status)
        return scored(request, arm)

    study = study_of()
    verdict = decide(study, simulated_history(study, play))
    budget = verdict.explore_budget["aim"]
    assert (budget.pruned, budget.oom, budget.failed, budget.diverged) == (3, 1, 1, 1)
    lines = notes(verdict)
    assert "Stopped early in explore: baseline 0, aim 3." in lines
    assert "Out of memory in explore: baseline 0, aim 1." in lines
    assert "Diverged in explore: baseline 0, aim 1." in lines


def traded(costs: dict[int, tuple[float, int | None]], **changes) -> tuple[Study, History]:
    """Plain search whose aim trainings have these (accuracy, parameters); the rest is poor and large."""
    study = study_of(objectives=("val_accuracy", "parameters"), **changes)
    study = replace(study, arms=("aim",), protocol=replace(study.protocol, blocks=0))
    study = with_(study, trials=8)
    history = simulated_history(study, scored)
    for t in history.rows():
        score, size = costs.get(t.index, (0.1, 10**6))
        t.result = replace(t.result, val_accuracy=score, parameters=size or 0)
    return study, history


FOUR = {0: (0.80, 900), 1: (0.90, 3000), 2: (0.895, 2000), 3: (0.85, 2500), 4: (0.70, 900)}


def test_a_pareto_set_by_hand():
    """3 is beaten by 2, 4 by 0; the others each have something that none of them has."""
    study, history = traded(FOUR)
    offers = pareto_set(study, history, "aim")
    assert [(o.position, o.val_accuracy, o.parameters) for o in offers] == [
        ("explore/1", 0.90, 3000), ("explore/2", 0.895, 2000), ("explore/0", 0.80, 900),
    ]  # fmt: skip
    verdict = decide(study, history)
    assert verdict.explored.pareto == {"aim": offers}
    assert verdict.to_dict()["explored"]["pareto"]["aim"][0]["parameters"] == 3000
    page = report_html(study, history, verdict)
    assert "What can be had for less?" in page
    assert "3,000" in page


@pytest.mark.parametrize("status", ["pruned", "failed", "diverged"])
def test_what_did_not_end_well_is_not_in_a_pareto_set(status):
    study, history = traded(FOUR)
    row = history.trainings["explore/1", "aim"]
    row.status, row.result = status, replace(row.result, status=status)
    assert [o.position for o in pareto_set(study, history, "aim")] == ["explore/2", "explore/0"]


def test_a_training_without_a_cost_is_left_out_and_repeats_count_once():
    study, history = traded({**FOUR, 5: (0.99, None), 6: (0.90, 3000)})
    history.trainings["explore/6", "aim"].reused_from = "explore/1"
    positions = [o.position for o in pareto_set(study, history, "aim")]
    assert positions == ["explore/1", "explore/2", "explore/0"]


def test_export_gives_up_so_much_accuracy_for_the_objective_and_says_it_is_one_training():
    study, history = traded(FOUR)

    def exported(**kwargs):
        return best_config(study, history, None, objective="parameters", **kwargs)

    assert exported()["recorded"]["position"] == "explore/2"  # half a point less
    assert exported(within_points=0.1)["recorded"]["position"] == "explore/1"
    assert exported(within_points=20)["recorded"]["position"] == "explore/0"
    expected = exported()["expected"]
    assert expected["test_accuracy"] is None
    assert expected["note"].startswith("not measured: of the trade-offs in explore")
    assert set(expected) == set(best_config(study, history, None)["expected"])


def test_an_objective_that_was_not_searched_is_refused():
    study, history = traded(FOUR)
    with pytest.raises(UserError, match=r"not searched for 'step_ms': it has parameters"):
        best_config(study, history, None, objective="step_ms")
    plain = with_(study, objectives=("val_accuracy",))
    with pytest.raises(UserError, match="it has none beside val_accuracy"):
        best_config(plain, history, None, objective="parameters")


def test_the_picture_names_how_many_of_each_arm():
    study, history = traded(FOUR)
    picture = trade_offs(study, history, decide(study, history))
    assert "aim 3 trainings" in picture.sentence
    assert trade_offs(study, history, Verdict(verdict="not_asked")) is None


def test_domains_in_words():
    assert said({"log_uniform": [0.001, 0.1]}) == "0.001 to 0.1"
    assert said({"choice": ["relu", "tanh"]}) == "relu or tanh"
    assert said(0.5) == "0.5"
    study = study_of(narrow=True)
    found = explore_facts(study, simulated_history(study, scored))
    assert [what for what, _ in explore_rows(found)] == [
        "memory_shape", "activation", "lr", "weight_decay",
    ]  # fmt: skip
