"""mlflow/serve.sh: POSIX sh, plain errors, one server per port, closed to foreign names."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from aim_tune.tracking.mirror import Mirror

SCRIPT = Path(__file__).resolve().parents[2] / "mlflow" / "serve.sh"
SHELL = shutil.which("dash") or "/bin/sh"  # dash knows nothing but POSIX


def serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("PORT", "STORE", "BIND")}
    return subprocess.run(
        [SHELL, str(SCRIPT), *arguments],
        env={**env, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_help_shows_the_variables():
    done = serve("--help")
    assert done.returncode == 0
    assert "PORT=5001 sh mlflow/serve.sh" in done.stdout
    assert "there is NO login" in done.stdout


def test_a_folder_without_a_store_says_what_to_run(tmp_path):
    done = serve(str(tmp_path))
    assert done.returncode == 2
    assert f"no store at {tmp_path}/mlflow.db. Run 'python -m aim_tune.search' first" in done.stderr


def test_a_port_that_is_no_number_is_refused(tmp_path):
    done = serve(str(tmp_path), PORT="http")
    assert done.returncode == 2
    assert "PORT is 'http'; it has to be a number" in done.stderr


def test_a_port_of_another_program_is_not_taken_for_mlflow(folder, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = serve(str(folder.parent), PORT=str(port))
    assert done.returncode == 2
    assert f"port {port} is taken by another program" in done.stderr


@pytest.mark.slow
def test_the_server_answers_here_and_takes_a_mirror_quietly(folder, port, study, records, capsys):
    server = subprocess.Popen(
        [SHELL, str(SCRIPT), str(folder.parent)],
        env={**os.environ, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while serve_answer(f"{url}/health") != 200:
            assert time.monotonic() < end, "the server never answered"
            time.sleep(1)
        again = serve(str(folder.parent), PORT=str(port))
        assert (again.returncode, "already at" in again.stdout) == (0, True)
        search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
        assert serve_answer(search) == 200
        assert serve_answer(search, host="evil.example") == 403
        mirror = Mirror(folder=folder, study=study, uri=url)
        mirror.start()
        for record in records[:40]:
            mirror.event(record)
        assert mirror.close() == ""
        assert capsys.readouterr().out == ""
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def serve_answer(url: str, host: str | None = None) -> int | None:
    """HTTP status; None where nobody answers."""
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
