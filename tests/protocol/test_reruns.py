"""The last stage: each arm's best point again with fresh seeds, what best_config then says."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import pytest

from aim_tune.export import _summary as export_summary
from aim_tune.ledger import History
from aim_tune.protocol import DONE, Machine
from aim_tune.protocol.best import best_config
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import requests_to_run, study_status


def with_reruns(study: Study, count: int = 3) -> Study:
    return replace(study, protocol=replace(study.protocol, export_seeds=count))


def reruns_of(told):
    return {p: pair for p, pair in told.items() if p.startswith("export/")}


def test_each_arms_best_confirmed_point_is_trained_again_on_fresh_seeds_and_splits(sim):
    study = with_reruns(sim.study_of(blocks=3))
    told = sim.run_study(Machine(study), slots=2)
    assert len(told) == study.requests_planned
    reruns = reruns_of(told)
    assert set(reruns) == {"export/3/0", "export/3/1", "export/3/2"}
    assert list(told)[-3:] == list(reruns)  # at the end
    for arm in study.arms:
        levels = {}
        for block in range(3):
            pairs = [told[f"block/{block}/confirm/{i}"] for i in range(2)]
            known = [scores[arm] for _, scores in pairs if scores[arm] is not None]
            levels[block] = (fmean(known) if known else 0.0, pairs[0][0].arms[arm])
        best = max(levels.values(), key=lambda pair: pair[0])[1]
        assert all(request.arms[arm] == best for request, _ in reruns.values())
    seeds = [seed for request, _ in told.values() for seed in request.streams.values()]
    for request, _ in reruns.values():
        assert not request.test  # no further look at the test
        assert all(seeds.count(seed) == 1 for seed in request.streams.values())


def test_the_reruns_wait_for_everything_else(sim):
    machine = Machine(with_reruns(sim.study_of(explore=0, blocks=1, twins=1, confirm=2)))
    twin = machine.ask()
    machine.tell(twin.position, sim.train(twin))
    first, second = machine.ask(), machine.ask()
    machine.tell(first.position, sim.train(first))
    assert machine.ask().name == "WAIT"
    machine.tell(second.position, sim.train(second))
    for number in range(3):
        request = machine.ask()
        assert request.position == f"export/1/{number}"
        machine.tell(request.position, sim.train(request))
    assert machine.ask() is DONE


@pytest.mark.parametrize(("explore", "blocks"), [(6, 0), (0, 2)])
def test_plain_search_runs_the_best_point_of_the_search_again(sim, explore, blocks):
    study = with_reruns(sim.study_of(arms=("aim",), explore=explore, blocks=blocks, confirm=0), 2)
    told = sim.run_study(Machine(study))
    reruns = reruns_of(told)
    search = [pair for p, pair in told.items() if p not in reruns and pair[1]["aim"] is not None]
    best = max(search, key=lambda pair: pair[1]["aim"])[0].arms["aim"]
    assert [r.arms["aim"] for r, _ in reruns.values()] == [best, best]
    assert len(told) == study.requests_planned


def test_the_sequence_does_not_depend_on_timing(sim):
    study = with_reruns(sim.study_of(blocks=2))
    texts = {
        sim.requests_text(sim.run_study(Machine(study), slots=slots, seed=slots))
        for slots in (1, 2, 7)
    }
    assert len(texts) == 1


def test_more_blocks_run_the_then_best_point_again_under_other_positions(sim, history_of):
    few, more = (with_reruns(sim.study_of(blocks=b)) for b in (2, 4))
    told = sim.run_study(Machine(more))
    assert set(reruns_of(told)) == {f"export/4/{i}" for i in range(3)}
    history: History = history_of(few)
    assert study_status(few, history) == "complete"
    history.apply({"event": "extended", "blocks": 4})
    assert requests_to_run(few, history) == len(told) + 3  # the earlier re-runs stay in the ledger
    assert study_status(few, history) == "unfinished"


def test_the_configuration_is_the_middle_rerun_and_its_level_their_mean(sim, history_of):
    study = with_reruns(sim.study_of(blocks=3))
    history = history_of(study)
    best = best_config(study, history, {"verdict": "better", "arm": "aim"})
    rows = [t for t in history.rows("export", "aim") if t.score is not None]
    scores = sorted(t.score for t in rows)
    recorded = history.trainings[best["recorded"]["position"], "aim"]
    assert recorded.score == scores[(len(scores) - 1) // 2]
    assert best["point"] == recorded.point.to_dict()
    assert best["streams"] == dict(recorded.streams)
    level = best["expected"]["reruns"]
    assert (level["n"], level["val_accuracy"]) == (len(rows), pytest.approx(fmean(scores)))
    tests = [t.test_accuracy for t in history.rows("confirm", "aim") if t.test_accuracy]
    assert best["expected"]["test_accuracy"] == pytest.approx(fmean(tests))  # no maximum, as before
    json.dumps(best)


def test_without_reruns_nothing_changes(sim, history_of):
    study = sim.study_of(blocks=2)
    assert "export_seeds" not in study.identity()["protocol"]
    assert with_reruns(study).study_hash != study.study_hash
    best = best_config(study, history_of(study), None, "aim")
    assert best["expected"]["reruns"] is None
    assert best["recorded"]["position"].startswith("block/")


def test_export_says_the_level_of_the_reruns_where_nothing_was_tested(sim, history_of, tmp_path):
    study = with_reruns(sim.study_of(arms=("aim",), explore=6, blocks=0), 2)
    best = best_config(study, history_of(study), None)
    level = best["expected"]["reruns"]
    text = export_summary(best, tmp_path / "best.yaml")
    assert f"{100 * level['val_accuracy']:.2f} % validation accuracy" in text
    assert f"(mean of {level['n']} re-runs)" in text
