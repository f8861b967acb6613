"""The use of the slots, from hand-made ledgers: what share trained, and what the idle time waited for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aim_tune.ledger import History, TrainingResult
from aim_tune.reporting.words_slots import slots_line, slots_warning
from aim_tune.spec.request import Point, Request
from aim_tune.spec.study import Resources
from aim_tune.stats.simulate import example_study
from aim_tune.stats.slots import slot_use

STUDY = example_study(blocks=2, twins=2, confirm=1, arms=("baseline",))


def opened(slots, time=0.0):
    return [{"event": "opened", "slots": slots, "time": time}]


def asked(position):
    request = Request(
        position=position,
        arms={"baseline": Point(shared={}, addon={})},
        streams={},
        turn=0,
        test=False,
    )
    return {"event": "asked", "time": 0.0, "position": position, "request": request.to_dict()}


def begun(position, time, attempt=1):
    head = {"position": position, "arm": "baseline", "attempt": attempt}
    return {"event": "training_started", **head, "time": time}


def ended(position, time, attempt=1):
    result = TrainingResult(arm="baseline", status="ok").to_dict()
    head = {"position": position, "arm": "baseline", "attempt": attempt}
    return {"event": "training_done", **head, "time": time, "result": result}


def trained(position, begin, end):
    return [asked(position), begun(position, begin), ended(position, end)]


def history_of(*parts):
    history = History()
    for record in sorted((r for part in parts for r in part), key=lambda r: r["time"]):
        history.apply(record)
    return history


def twins(*spells):
    """Trainings of block 0 at the given times."""
    return [r for i, (a, b) in enumerate(spells) for r in trained(f"block/0/twin/{i}", a, b)]


def test_two_slots_that_train_all_the_time_are_used_whole():
    use = slot_use(STUDY, history_of(opened(2), twins((1, 11), (1, 11), (11, 21), (11, 21))))
    assert (use.slots, use.trainings, use.seconds, use.training_s) == (2, 4, 20.0, 10.0)
    assert (use.share, use.between, use.end, use.low) == (1.0, 0.0, 0.0, False)
    assert slots_line(use) == "2.0 of 2 slots training on average (100 %)"


def test_the_five_shares_are_all_of_the_slots_time():
    study = example_study(blocks=9, twins=1, confirm=0, explore=2, arms=("baseline",))
    study = replace(study, protocol=replace(study.protocol, looks=(8,)))
    use = slot_use(study, history_of(
        opened(2),
        trained("explore/0", 0, 10), trained("explore/1", 0, 20),  # 10 s wait for the end of explore
        trained("block/7/twin/0", 20, 30), trained("block/6/twin/0", 25, 40),
        trained("block/8/twin/0", 44, 50), trained("block/8/twin/1", 46, 60),  # 10 + 4 + 4 at the look
    ))  # fmt: skip
    parts = [use.share, use.explore, use.looks, use.between, use.end]
    assert [p * 120 for p in parts] == pytest.approx([75.0, 10.0, 18.0, 7.0, 10.0])


def test_the_last_jobs_tail_raises_no_alarm():
    long = [(10 * i, 10 * i + 10) for i in range(12) for _ in range(4)]
    use = slot_use(STUDY, history_of(opened(4), twins(*long, (120, 240))))
    assert use.share == pytest.approx(600 / 960)
    assert use.end == pytest.approx(360 / 960)
    assert use.share < 0.8
    assert not use.low
    assert slots_warning(STUDY, use) == ""


def test_slots_that_idle_between_trainings_are_said_with_the_reason():
    spells = [(3 * i, 3 * i + 1) for i in range(60)]
    history = history_of(opened(1), twins(*spells))
    use = slot_use(STUDY, history)
    assert use.low
    assert slots_warning(STUDY, use) == (
        "Only 0.3 of 1 slot training on average (34 %). Trainings are short: one takes 1.0 s, and 2.0 s pass "
        "before the slot trains again. Longer ones (recipe.steps) waste less."
    )
    apart = replace(STUDY, resources=Resources(pack="arm"))
    assert "resources.pack: twin starts fewer jobs" in slots_warning(apart, use)


def test_where_explore_has_too_small_a_lag_it_is_named_with_the_remedy():
    study = example_study(blocks=1, twins=1, confirm=0, explore=80, arms=("baseline",))
    rows = [
        trained(f"explore/{4 * i + k}", 10 * i, 10 * i + 10) for i in range(20) for k in range(4)
    ]
    use = slot_use(study, history_of(opened(8), *rows, trained("block/0/twin/0", 200, 210)))
    assert use.cause == "explore"
    assert slots_warning(study, use) == (
        "Only 3.9 of 8 slots training on average (48 %). Explore caused most of it: explore.lag 4 lets 4 of "
        "them train at a time. Fewer slots are as fast there; a new study may take a larger lag (--set "
        "protocol.explore.lag=8), with proposals that know less."
    )
    few = slot_use(study, history_of(opened(4), *rows, trained("block/0/twin/0", 300, 310)))
    assert "the blocks wait until its last training is over" in slots_warning(study, few)


def test_waiting_for_planned_looks_is_named():
    study = replace(STUDY, protocol=replace(STUDY.protocol, looks=(1, 2)))
    before = [(5 * i, 5 * i + 5) for i in range(16)]
    history = history_of(
        opened(2), twins(*before), trained("block/0/confirm/0", 80, 200),
        trained("block/1/twin/0", 200, 210), trained("block/1/twin/1", 200, 210),
    )  # fmt: skip
    use = slot_use(study, history)
    assert use.cause == "looks"
    assert "Planned looks caused most of it" in slots_warning(study, use)


def test_few_trainings_or_seconds_say_nothing_yet():
    few = slot_use(STUDY, history_of(opened(8), twins((0, 50), (100, 150), (200, 250))))
    short = slot_use(STUDY, history_of(opened(1), twins(*[(i, i + 0.1) for i in range(50)])))
    assert few.share < 0.5
    assert short.share < 0.5
    assert (few.low, short.low) == (False, False)


def test_the_time_between_two_runs_is_nobodys_and_lost_attempts_took_their_slot():
    history = history_of(
        opened(1), [asked("block/0/twin/0"), begun("block/0/twin/0", 0.0)],
        [{"event": "interrupted", "reason": "Ctrl-C", "time": 30.0}],
        [{"event": "resumed", "time": 1000.0}], opened(2, time=1001.0),
        [begun("block/0/twin/0", 1002.0, 2),
         {"event": "job_lost", "position": "block/0/twin/0", "arms": ["baseline"], "reason": "killed",
          "time": 1012.0},
         begun("block/0/twin/0", 1012.0, 3), ended("block/0/twin/0", 1022.0, 3)],
    )  # fmt: skip
    use = slot_use(STUDY, history)
    assert (use.slots, use.trainings, use.seconds) == (2, 3, 50.0)
    assert use.share == pytest.approx((30 + 20) / (30 + 2 * 20))


def test_what_a_killed_driver_was_training_counts_until_its_last_record():
    history = history_of(
        opened(1), [asked("block/0/twin/0"), begun("block/0/twin/0", 5.0)],
        trained("block/0/twin/1", 0, 9), [{"event": "resumed", "time": 500.0}],
    )  # fmt: skip
    assert history.trainings["block/0/twin/0", "baseline"].spells == [(5.0, 9)]


def test_what_trains_now_counts_up_to_now():
    history = history_of(opened(2), twins((0, 10)), [asked("explore/0"), begun("explore/0", 10.0)])
    assert slot_use(STUDY, history).trainings == 1
    assert slot_use(STUDY, history, now=40.0).share == pytest.approx(40 / 80)


def test_a_ledger_without_slots_or_trainings_has_no_figure():
    assert slot_use(STUDY, history_of(twins((0, 10)))) is None
    assert slot_use(STUDY, history_of(opened(2))) is None
