"""Early stopping with real trainings: the same ladders, the same stops, whatever engine or interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from aim_tune.engine import in_process
from aim_tune.engine.conductor import Conductor
from aim_tune.errors import ResumeError
from aim_tune.ledger import History
from aim_tune.protocol import DONE, Machine
from aim_tune.spec import Study, load_study
from aim_tune.spec.request import STREAMS, Point, Request
from aim_tune.stats.verdict import decide
from aim_tune.tables import HOUSE

TEXT = """
name: laddered
backbone: {name: mlp}
data: {name: digits, image_size: 8, train_images: 60, val_images: 200}
arms: [baseline, aim]
recipe: {steps: 24, batch_size: 16, evaluations: 6, schedule: constant}
shared: {lr: {log_uniform: [1.0e-5, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 14, lag: 3, stopping: true}, blocks: 0}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    file = tmp_path_factory.mktemp("study") / "study.yaml"
    file.write_text(TEXT)
    return load_study(file, HOUSE)[0]


def run(study: Study, ledger: Any, engine: Any = in_process, slots: int = 1) -> History:
    machine = Machine(study, recorded=ledger.history.requests.get)
    conductor = Conductor(study, machine, ledger, None)
    with engine.opened(study, slots=slots) as opened:
        opened.run(conductor, study, None)
    return ledger.history


def facts(history: History) -> dict[Any, Any]:
    return {
        key: (t.status, t.score, len(t.curve), t.result.steps, t.result.weights_sha256,
              t.reused_from, history.requests[key[0]].to_dict())
        for key, t in sorted(history.trainings.items())
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(study: Study) -> Any:
    """The records of an uninterrupted run in this process."""
    records: list[dict[str, Any]] = []

    class Kept:
        history = History()

        def append(self, event: Any) -> dict[str, Any]:
            records.append(json.loads(json.dumps({"time": 0.0, **event})))
            self.history.apply(records[-1])
            return records[-1]

    return run(study, Kept()), records


def test_each_arm_is_stopped_by_its_own_ladder_and_counted(study: Study, whole: Any) -> None:
    history, _ = whole
    rows = history.rows()
    stopped = [t for t in rows if t.status == "pruned" and not t.reused_from]
    assert {t.arm for t in stopped} == {"baseline", "aim"}
    for training in stopped:
        rungs = dict(history.requests[training.position].stop[training.arm])
        assert training.score == training.curve[-1].val_accuracy < rungs[len(training.curve)]
        assert training.result.steps == training.curve[-1].step < 24
        assert training.result.allotted_steps == 24
        assert training.curve[-1].step / 24 >= 0.25
    for training in [t for t in rows if t.status == "ok" and not t.reused_from]:
        for number, least in history.requests[training.position].stop.get(training.arm, ()):
            assert training.curve[number - 1].val_accuracy >= least
    verdict = decide(study, history)
    for arm in study.arms:
        own = sum(t.status == "pruned" for t in rows if t.arm == arm)
        assert verdict.budget[arm].pruned == own
        assert verdict.budget[arm].failed == verdict.budget[arm].oom == 0


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_replayed_study_goes_on_to_the_same_ladders_and_stops(
    study: Study, whole: Any, lab: Any, share: float
) -> None:
    history, records = whole
    begun = History()
    for record in records[: int(share * len(records))]:
        begun.apply(record)
    assert facts(run(study, lab.Ledger(begun))) == facts(history)


class Script:
    """A machine that asks given requests."""

    def __init__(self, *requests: Request) -> None:
        self.requests, self.told = list(requests), {}

    def ask(self) -> Any:
        return self.requests.pop(0) if self.requests else DONE

    def tell(self, position: str, told: Any) -> None:
        self.told[position] = told


def twice(least: float) -> tuple[Request, Request]:
    """The same point at two trials, with a ladder at the second."""
    arms = {"baseline": Point(shared={"lr": 1e-4})}
    first = Request(position="explore/0", arms=arms, streams=dict.fromkeys(STREAMS, 1))
    return first, replace(first, position="explore/9", stop={"baseline": ((2, least),)})


def test_a_repeated_point_is_not_trained_again_whatever_its_ladder(study: Study, lab: Any) -> None:
    script, ledger = Script(*twice(0.99)), lab.Ledger()
    conductor = Conductor(study, script, ledger, None)
    with in_process.opened(study, slots=1) as opened:
        opened.run(conductor, study, None)
    assert ledger.history.trainings["explore/9", "baseline"].reused_from == "explore/0"
    assert script.told["explore/9"] == script.told["explore/0"]
    assert not script.told["explore/9"]["baseline"].pruned


def test_a_request_with_another_ladder_than_recorded_is_refused(study: Study, lab: Any) -> None:
    def conducted(ledger: Any, least: float) -> None:
        conductor = Conductor(study, Script(twice(least)[1]), ledger, None)
        with in_process.opened(study, slots=1) as opened:
            opened.run(conductor, study, None)

    ledger = lab.Ledger()
    conducted(ledger, 0.0)
    conducted(lab.Ledger(ledger.history), 0.0)
    with pytest.raises(ResumeError, match="explore/9 was asked differently"):
        conducted(lab.Ledger(ledger.history), 0.1)


def test_one_arm_per_job_gives_the_same(study: Study, whole: Any, lab: Any) -> None:
    apart = replace(study, resources=replace(study.resources, pack="arm"))
    assert facts(run(apart, lab.Ledger())) == facts(whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3])
def test_ray_with_any_slots_gives_the_same(
    study: Study, whole: Any, lab: Any, slots: int, ray_session: Any
) -> None:
    from aim_tune.engine import ray_tune

    assert facts(run(study, lab.Ledger(), ray_tune, slots)) == facts(whole[0])
