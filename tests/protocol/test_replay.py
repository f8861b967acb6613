"""A machine that is given the record proposes only what is new, and goes on as if never interrupted."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import optuna
import pytest

from aim_tune.protocol import DONE, WAIT, Gate, Machine, Told
from aim_tune.protocol.points import values_of
from aim_tune.protocol.sampling import contains
from aim_tune.spec.request import Request
from aim_tune.spec.space import Choice, Fixed, IntUniform, Uniform
from aim_tune.spec.study import Study
from aim_tune.spec.values import canonical, derive_seed


def trained(request: Request) -> dict[str, Told]:
    """A pure function of the request; half of those with a ladder are stopped, one in eight has no score."""
    found = {}
    for arm in request.arms:
        chance = random.Random(derive_seed(request.content_hash, arm))
        passes = tuple(sorted(chance.random() for _ in range(4)))
        end = chance.randrange(8)
        stopped = end < 4 and arm in request.stop
        found[arm] = Told(
            score=None if end == 7 else passes[1 if stopped else 3],
            pruned=stopped,
            passes=passes[:2] if stopped else passes,
            step_ms=1 + chance.random(),
            parameters=100,
        )
    return found


def run(
    machine: Machine, told: dict[str, Any], stop_after: int | None = None
) -> dict[str, Request]:
    """Every request that was asked, by position; what came of it goes into `told`."""
    chance, running, asked = random.Random(0), [], {}
    while stop_after is None or len(asked) < stop_after:
        answer = machine.ask()
        if isinstance(answer, Request):
            asked[answer.position] = answer
            running.append(answer)
        if isinstance(answer, Gate):
            machine.answer(answer, True)
        elif answer is DONE:
            break
        elif answer is WAIT or len(running) == 3:
            request = running.pop(chance.randrange(len(running)))
            told[request.position] = told.get(request.position) or trained(request)
            machine.tell(request.position, told[request.position])
    return asked


def text(asked: dict[str, Request]) -> str:
    return canonical({position: request.to_dict() for position, request in asked.items()})


def explored(study: Study, **changes: Any) -> Study:
    explore = replace(study.protocol.explore, **changes)
    return replace(study, protocol=replace(study.protocol, explore=explore))


@pytest.fixture
def studies(sim) -> dict[str, Study]:
    searched = sim.study_of(explore=14, lag=3, blocks=1, twins=2, confirm=1)
    twins = sim.study_of(explore=0, blocks=2, twins=13, lag=4, confirm=1)
    later = replace(twins.protocol, attribution="after_better")
    return {
        "explore": searched,
        "finalists": explored(searched, finalists=2, narrow=True),
        "stopping": explored(searched, stopping=True),
        "two objectives": explored(searched, objectives=("val_accuracy", "step_ms")),
        "baseline explores": explored(searched, arms=("baseline",)),
        "TPE twins": twins,
        "arms that wait": replace(twins, protocol=later),
        "no add-on": sim.study_of(arms=("baseline",), addon=None, explore=0, blocks=1, twins=12),
    }


NAMES = [
    "explore", "finalists", "stopping", "two objectives", "baseline explores", "TPE twins",
    "arms that wait", "no add-on",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_machine_that_takes_the_record_goes_on_as_if_never_interrupted(studies, name):
    study = studies[name]
    whole = run(Machine(study), {})
    for kill_at in range(1, len(whole) + 1, 3):
        told: dict[str, Any] = {}
        before = run(Machine(study), told, stop_after=kill_at)
        assert len(told) < len(before)  # some were asked and not told
        again = run(Machine(study, recorded=before.get), told)
        assert text(again) == text(whole), kill_at


@pytest.mark.parametrize(("name", "searched"), [("explore", 14), ("TPE twins", 26)])
def test_what_is_recorded_is_not_proposed_again(studies, name, searched, monkeypatch):
    proposals = []

    class Counted(optuna.samplers.TPESampler):
        def __init__(self, **kwargs: Any) -> None:
            proposals.append(kwargs)
            super().__init__(**kwargs)

    monkeypatch.setattr(optuna.samplers, "TPESampler", Counted)
    told: dict[str, Any] = {}
    whole = run(Machine(studies[name]), told)
    assert len(proposals) == searched - (name == "explore")  # its first point is given
    proposals.clear()
    run(Machine(studies[name], recorded=whole.get), told)
    assert proposals == []
    run(Machine(studies[name], recorded=dict(list(whole.items())[:10]).get), told)
    assert len(proposals) == searched - 10


def test_a_recorded_point_outside_the_space_is_proposed_anew(studies):
    """So that the conductor finds it different and refuses it."""
    study = studies["TPE twins"]
    whole = run(Machine(study), {})
    first = whole["block/0/twin/0"]
    points = {
        arm: replace(point, shared={**point.shared, "lr": 7.0}) for arm, point in first.arms.items()
    }
    wrong = {**whole, first.position: replace(first, arms=points)}
    assert text(run(Machine(study, recorded=wrong.get), {})) == text(whole)


def test_a_request_without_the_add_on_part_does_not_tell_its_proposal(studies):
    space = {"shared.lr": Uniform(0.1, 1.0), "addon.width": Choice((8, 16))}
    request = next(iter(run(Machine(studies["no add-on"]), {}, stop_after=1).values()))
    assert values_of(request, space) is None
    assert values_of(None, space) is None


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Fixed("batch"), ["batch"], ["sample", None]),
        (Choice(((4, 4), (2, 2))), [[4, 4], [2, 2]], [[4, 2], 4]),
        (Choice((1, 2)), [1], [True, 1.0, "1"]),
        (Uniform(0.1, 1.0), [0.1, 1.0], [0.09, 1.1, "0.5", True]),
        (IntUniform(1, 4), [1, 4], [0, 5, 2.0, True]),
    ],
)
def test_a_space_contains_what_its_domains_allow(domain, inside, outside):
    assert all(contains({"a": domain}, {"a": value}) for value in inside)
    assert not any(contains({"a": domain}, {"a": value}) for value in outside)
    assert not contains({"a": domain}, {})
    assert not contains({"a": domain}, {"a": inside[0], "b": 1})
