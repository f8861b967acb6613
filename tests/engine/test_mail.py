"""Messages of a worker: nothing waits for the driver but the end of a training, nothing is left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from aim_tune.engine import mail as subject
from aim_tune.engine.mail import Mail

START = {"event": "training_started", "arm": "aim"}
DONE = {"event": "training_done", "arm": "aim"}


class Driver:
    """Reads messages, while `reads` is set."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.reads = threading.Event()
        self.reads.set()
        self.came = threading.Semaphore(0)

    def take(self, message: dict[str, Any]) -> None:
        assert self.reads.wait(10)
        self.messages.append(message)
        self.came.release()

    @property
    def events(self) -> list[list[str]]:
        """What each message holds."""
        return [[r["event"] for r in json.loads(m["records"])] for m in self.messages]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.reads.set()


def epoch(step: int) -> dict[str, Any]:
    return {"event": "epoch", "arm": "aim", "step": step}


def test_a_start_is_sent_at_once_and_epochs_soon_though_nothing_follows(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the driver knows who hangs, and what it had reached."""
    monkeypatch.setattr(subject, "MAIL_S", 1.0)
    mail = Mail(driver.take)
    mail.put(START)
    assert driver.came.acquire(timeout=10)
    mail.put(epoch(1))
    mail.put(epoch(2))
    assert driver.came.acquire(timeout=10)
    assert driver.events == [["training_started"], ["epoch", "epoch"]]
    mail.close()


def test_only_the_end_of_a_training_waits_for_the_driver(driver: Driver) -> None:
    mail = Mail(driver.take)
    driver.reads.clear()
    mail.put(START)
    mail.put(epoch(1))
    ended = threading.Thread(target=mail.put, args=[DONE])
    ended.start()
    ended.join(0.3)
    assert ended.is_alive()
    driver.reads.set()
    ended.join(10)
    assert not ended.is_alive()
    assert [e for message in driver.events for e in message] == [
        "training_started",
        "epoch",
        "training_done",
    ]
    mail.close()
    assert [m["message"] for m in driver.messages] == list(range(1, len(driver.messages) + 1))


def test_what_is_there_at_the_end_goes_before_the_reason(driver: Driver) -> None:
    mail = Mail(driver.take)
    mail.put(epoch(1))
    mail.close(lost="OSError: gone")
    assert driver.events == [["epoch"], []]
    assert [m["lost"] for m in driver.messages] == ["", "OSError: gone"]


@pytest.mark.parametrize("error", [SystemExit(0), ConnectionError("no driver")])
def test_the_training_ends_with_what_sending_raises(error: BaseException) -> None:
    def refuse(message: dict[str, Any]) -> None:
        raise error

    mail = Mail(refuse)
    with pytest.raises(type(error)):
        mail.put(DONE)
    with pytest.raises(type(error)):
        mail.close(lost="never sent")
