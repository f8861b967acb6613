"""mlflow/serve.sh: POSIX sh, plain errors, one server per port, closed to foreign names, a login if asked."""

from __future__ import annotations

import base64
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from aim_tune.tracking.mirror import Mirror

SCRIPT = Path(__file__).resolve().parents[2] / "mlflow" / "serve.sh"
SHELL = shutil.which("dash") or "/bin/sh"  # dash knows nothing but POSIX
VARIABLES = ("PORT", "STORE", "ARTIFACTS", "PASSWORD", "BIND", "ALLOWED_HOSTS")
PASSWORD = "a password for tests"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=1"


def environment(**variables: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if k not in VARIABLES and not k.startswith("MLFLOW_")
    }
    return {**kept, **variables}


def serve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SHELL, str(SCRIPT), *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def running(results: Path, port: int, **variables: str) -> Iterator[str]:
    """A server of the script; its address."""
    log = results.parent / "serve.log"
    with open(log, "w") as out:
        server = subprocess.Popen(
            [SHELL, str(SCRIPT), str(results)],
            env=environment(PORT=str(port), **variables),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 180
        while answer(port, "/health") != 200:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, f"the server never answered: {log.read_text()}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def answer(port: int, path: str, **headers: str) -> int | None:
    """HTTP status, of the path exactly as it is written; None where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_help_shows_the_variables():
    done = serve("--help")
    assert done.returncode == 0
    for variable in VARIABLES:
        assert f"{variable}=" in done.stdout


def test_a_folder_without_a_store_says_what_to_run(tmp_path):
    done = serve(str(tmp_path))
    assert done.returncode == 2
    assert f"no store at {tmp_path}/mlflow.db. Run 'python -m aim_tune.search' first" in done.stderr


def test_a_port_that_is_no_number_is_refused(tmp_path):
    done = serve(str(tmp_path), PORT="http")
    assert done.returncode == 2
    assert "PORT is 'http'; it has to be a number" in done.stderr


def test_a_short_password_is_refused_and_nothing_is_written(folder, port):
    done = serve(str(folder.parent), PORT=str(port), PASSWORD="short")
    assert done.returncode == 2
    assert "PASSWORD has 5 characters; MLflow wants 12 or more" in done.stderr
    assert not (folder.parent / "mlflow_secret").exists()


def test_a_port_of_another_program_is_not_taken_for_mlflow(folder, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        done = serve(str(folder.parent), PORT=str(port))
    assert done.returncode == 2
    assert f"port {port} is taken by another program" in done.stderr


@pytest.mark.slow
def test_the_server_answers_here_only_and_takes_a_mirror_quietly(
    folder, port, study, records, capsys
):
    with running(folder.parent, port) as url:
        again = serve(str(folder.parent), PORT=str(port))
        assert (again.returncode, "already at" in again.stdout) == (0, True)
        assert answer(port, SEARCH) == 200
        assert answer(port, SEARCH, Host="evil.example") == 403
        mirror = Mirror(folder=folder, study=study, uri=url)
        mirror.start()
        for record in records[:40]:
            mirror.event(record)
        (folder / "report.html").write_text("<p>seen</p>")
        mirror.finish({"verdict": "no_evidence"}, "Nothing seen.", [folder / "report.html"])
        assert mirror.close() == ""
        assert capsys.readouterr().out == ""
        artifacts_go_through_the_server_and_stay_in_their_place(folder, study, url, port)


def artifacts_go_through_the_server_and_stay_in_their_place(folder, study, url, port):
    client = MlflowClient(tracking_uri=url)
    experiment = client.get_experiment_by_name(f"aim_tune/{study.name}")
    assert experiment.artifact_location.startswith("mlflow-artifacts:")
    run = client.search_runs([experiment.experiment_id])[0].info.run_id
    page = f"/get-artifact?path=report.html&run_uuid={run}"
    assert answer(port, page) == 200
    assert answer(port, page.replace("report", "..%2f..%2f..%2f..%2fmlflow")) == 400
    proxied = "/api/2.0/mlflow-artifacts/artifacts/"
    assert answer(port, f"{proxied}..%2f..%2fmlflow.db") == 400
    stored = list((folder.parent / "mlartifacts").rglob("report.html"))
    assert [file.read_text() for file in stored] == ["<p>seen</p>"]


@pytest.mark.slow
def test_with_a_password_nobody_reads_or_writes_without_it(
    folder, port, study, records, monkeypatch
):
    pytest.importorskip("flask_wtf", reason="no login without it: pip install 'mlflow[auth]'")
    good = {"Authorization": "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()}
    bad = {"Authorization": "Basic " + base64.b64encode(b"admin:another password").decode()}
    with running(folder.parent, port, PASSWORD=PASSWORD) as url:
        for path in (SEARCH, "/", "/version", "/get-artifact?path=x&run_uuid=x"):
            assert answer(port, path) == 401, path
            assert answer(port, path, **bad) == 401, path
        assert answer(port, SEARCH, **good) == 200
        assert answer(port, SEARCH, Host="evil.example", **good) == 403
        again = serve(str(folder.parent), PORT=str(port), PASSWORD=PASSWORD)
        assert (again.returncode, "already at" in again.stdout) == (0, True)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        mirror = Mirror(folder=folder, study=study, uri=url)
        mirror.start()
        for record in records[:20]:
            mirror.event(record)
        assert mirror.close() == ""
        assert "Verdict" in mirror.views
    for secret in ("mlflow_secret", "mlflow_login.ini", "mlflow_users.db"):
        assert (folder.parent / secret).stat().st_mode & 0o077 == 0, secret
    assert PASSWORD not in (folder.parent / "mlflow_login.ini").read_text()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The URI of an empty database on a PostgreSQL of the test's own."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    where = Path(f"/tmp/aim_tune_pg_{os.getpid()}")  # a socket's path has to be short
    where.mkdir(mode=0o777)
    where.chmod(0o777)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, control = where / "data", Path(initdb).with_name("pg_ctl")

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [*as_user, *map(str, command)], cwd=where, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(initdb, "-D", data, "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-F -p {port} -k {where} -c listen_addresses=127.0.0.1"
        run(control, "-D", data, "-l", where / "log", "-o", options, "-w", "start")
        try:
            yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        finally:
            run(control, "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(where, ignore_errors=True)


@pytest.mark.slow
def test_postgresql_is_a_store_like_any_other(folder, port, study, records, postgres):
    pytest.importorskip("psycopg2", reason="no driver: pip install 'aim-tune[postgres]'")
    with running(folder.parent, port, STORE=postgres) as url:
        for _ in range(2):  # twice: nothing is doubled
            mirror = Mirror(folder=folder, study=study, uri=url)
            mirror.start()
            for record in records:
                mirror.event(record)
            assert mirror.close() == ""
        client = MlflowClient(tracking_uri=url)
        experiment = client.get_experiment_by_name(f"aim_tune/{study.name}")
        assert len(client.search_runs([experiment.experiment_id])) == 18
        assert set(mirror.links) >= {"Verdict", "Cost", "Memory images"}
    again = Mirror(folder=folder, study=study, uri=postgres)  # without a server between
    again.start()
    assert again.close() == ""
