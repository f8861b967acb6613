"""Each saved view opened in a real browser: its filter, its grouping, its cards. Pins MLflow's format."""

from __future__ import annotations

import html
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from aim_tune.stats import decide
from aim_tune.stats.simulate import World, simulated_history
from aim_tune.tracking.mirror import Mirror
from aim_tune.tracking.place import default_uri

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not BROWSER, reason="no Chromium on this machine: the views are not looked at"
    ),
]

CARDS = {
    "Verdict": ["verdict: no evidence", "delta/effect_points", "Description"],
    "Confirmation by arm": [
        "Group by: aim.arm", "Group: aim", "Group: baseline", "delta/test_points", "test/error_points",
        "6 matching runs",
    ],
    "Pair differences": ["delta/test_points", "val/best vs. test/accuracy", "4 matching runs"],
    "Search: baseline against AiM": ["Group by: aim.arm", "val/best", "train/loss", "train/lr"],
    "AiM settings": ["Parallel Coordinates", "shared.lr vs. val/best"],
    "Cost": ["Group by: aim.arm", "cost/step_ms", "cost/parameters", "cost/seconds"],
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
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


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


def seen_at(url: str, profile: str, expected: list[str]) -> str:
    """The text of a page once it holds all that is expected, or after the last of three looks."""
    for patience_ms in (20_000, 60_000, 180_000):  # of the page's clock, which waits for nobody
        text = text_at(url, profile, patience_ms)
        if all(part in text for part in expected):
            break
    return text


def text_at(url: str, profile: str, patience_ms: int) -> str:
    """The text of a page, and the values of its fields, after its scripts have run."""
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-component-update", "--no-first-run", "--window-size=1600,2400",
         f"--user-data-dir={profile}", f"--virtual-time-budget={patience_ms}", "--dump-dom", url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    page = re.sub(r"<(script|style).*?</\1>", "", done.stdout, flags=re.DOTALL)
    fields = " ".join(re.findall(r'value="([^"]*)"', page))
    text = re.sub(r"<[^>]+>", " ", page)
    return " ".join(html.unescape(f"{text} {fields}").split())


def test_each_view_opens_with_its_filter_grouping_and_cards(
    folder, study, records, address, tmp_path
):
    verdict = decide(study, simulated_history(study, World(effects={}).play)).to_dict()
    mirror = Mirror(folder=folder, study=study, uri=address.rstrip("/"))
    mirror.start()
    for record in records:
        mirror.event(record)
    mirror.finish({**verdict, "verdict": "no_evidence", "interim": False}, "No evidence.")
    assert mirror.close() == ""
    assert list(mirror.links) == list(CARDS)
    for name, link in mirror.links.items():
        wanted = ["tags.`aim.phase`", *CARDS[name]]
        text = seen_at(address + link, str(tmp_path / "profile"), wanted)
        assert "Error loading shared view" not in text, name
        for expected in wanted:
            assert expected in text, f"{name}: {expected!r} not in {text}"
