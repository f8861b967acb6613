"""Each saved view opened in a real browser: its filter, its grouping, its cards. Pins MLflow's format."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest

from aim_tune.addons.pictures import MemoryPictures
from aim_tune.stats import decide
from aim_tune.stats.simulate import World, simulated_history
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri

pytestmark = pytest.mark.slow

CARDS = {
    "Verdict": ["verdict: no evidence", "delta/effect_points", "Description"],
    "Confirmation by arm": [
        "Group by: aim.arm", "Group: aim", "Group: baseline", "delta/test_points", "test/error_points",
        "6 matching runs",
    ],
    "Pair differences": ["delta/test_points", "val/best vs. test/accuracy", "4 matching runs"],
    "Search: baseline against AiM": ["Group by: aim.arm", "val/best", "train/loss", "train/lr"],
    "AiM settings": ["Parallel Coordinates", "shared.lr vs. val/best"],
    "Cost": [
        "cpu: simulated", "cost/step_ms", "cost/parameters", "cost/seconds",
        "system/process_memory_mebibytes",
    ],
    "Memory images": [
        "1 matching run", "aim block/0/confirm/0", "memory/before training", "memory/after training",
        "memory/by step", "memory/written for image 1",
    ],
}  # fmt: skip


@pytest.fixture
def address(folder) -> Iterator[str]:
    """A server over the store of `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", default_uri(folder.parent),
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    server = subprocess.Popen(
        command, cwd=folder.parent, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/"
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it waits for open pages if asked nicely
        server.wait(timeout=60)


def wait_for(url: str) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 120
    while True:
        try:
            direct.open(url, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < end, "the server never answered"
            time.sleep(1)


def seen_at(browser, url: str, expected: list[str]) -> str:
    """The text of a page once it holds all that is expected, or after the last of three looks."""
    for patience_ms in (20_000, 60_000, 180_000):  # of the page's clock, which waits for nobody
        text = browser.text(url, patience_ms)
        if all(part in text for part in expected):
            break
    return text


def with_pictures(records):
    """The ledger as a real search leaves it: the memory's pictures, and what each training took."""
    start = np.random.default_rng(0).normal(size=(16, 4, 4)).astype(np.float32)
    memory = MemoryPictures.of(start, start + 0.5, np.stack([start, -start]), labels=[1, 2])
    for record in records:
        if record["event"] == "training_done":
            record["result"].update(cpu_percent=97.0, rss_mib=640.0)
            if (record["position"], record["arm"]) == ("block/0/confirm/0", "aim"):
                record["result"]["memory"] = memory.to_dict()
    return records


def test_each_view_opens_with_its_filter_grouping_and_cards(
    folder, study, records, address, browser
):
    verdict = decide(study, simulated_history(study, World(effects={}).play)).to_dict()
    mirror = Mirror(folder=folder, study=study, uri=address.rstrip("/"))
    mirror.start()
    for record in with_pictures(records):
        mirror.event(record)
    mirror.finish({**verdict, "verdict": "no_evidence", "interim": False}, "No evidence.")
    assert mirror.close() == ""
    assert list(mirror.links) == list(CARDS)
    for name, link in mirror.links.items():
        wanted = ["tags.`aim.phase`", *CARDS[name]]
        text = seen_at(browser, address + link, wanted)
        assert "Error loading shared view" not in text, name
        for expected in wanted:
            assert expected in text, f"{name}: {expected!r} not in {text}"
