"""The verb `cluster`, with a make-believe `ray` command that records what it is asked."""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
from pathlib import Path

import pytest

from aim_tune import cluster
from aim_tune.ledger import Ledger
from aim_tune.ledger_copy import LedgerCopy
from aim_tune.spec import load_study
from aim_tune.storage import open_storage
from aim_tune.tables import HOUSE

FILE = "metadata: {storage: /mnt/shared/aim_tune}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text(FILE)
    return path


def ray_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> Path:
    """A `ray` that notes its arguments and then runs `body` (Python); the file of the notes."""
    ray, notes = tmp_path / "bin" / "ray", tmp_path / "notes"
    ray.parent.mkdir()
    ray.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys, time\nargs = sys.argv[1:]\n"
        f"open({str(notes)!r}, 'a').write('|'.join(args) + '\\n')\n{body}\n"
    )
    ray.chmod(ray.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(cluster, "_ray", lambda: str(ray))
    return notes


def test_a_good_file_exits_with_0_and_says_what_comes_next(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aim_tune.cluster_rules.check", lambda path: [])
    assert cluster.main(["check", str(file)]) == 0
    assert f"Next: ray up -y {file}" in capsys.readouterr().out


def test_a_bad_file_exits_with_2_and_lists_its_faults(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(["check", str(file)]) == 2
    said = capsys.readouterr().err
    assert "faults in the cluster file:" in said
    assert "cluster_name: is missing" in said


@pytest.mark.parametrize("verb", [["status"], ["ui"], ["fetch"]])
def test_a_file_without_storage_is_said_before_anything_is_asked(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ["study"] if verb == ["fetch"] else []
    assert cluster.main([*verb, str(tmp_path / "none.yaml"), *name]) == 2
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "empty.yaml").write_text("cluster_name: x\n")
    assert cluster.main([*verb, str(tmp_path / "empty.yaml"), *name]) == 2
    assert "metadata.storage is missing" in capsys.readouterr().err


def test_status_shows_what_the_head_says_without_the_log_around_it(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = (
        "print('INFO running', args[2])\n"
        "print('aim-tune-output-begins\\r\\n3 nodes\\x1b[0m\\r\\naim-tune-output-ends\\r')\n"
        "print('INFO done')"
    )
    notes = ray_that(tmp_path, monkeypatch, body)
    assert cluster.main(["status", str(file)]) == 0
    assert capsys.readouterr().out == "3 nodes\n"
    assert "ray status && python3 -m aim_tune.cluster progress /mnt/shared/aim_tune" in (
        notes.read_text()
    )


def test_status_of_a_cluster_that_is_down_names_the_command_that_starts_it(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray_that(tmp_path, monkeypatch, "sys.exit('no route to host')")
    assert cluster.main(["status", str(file)]) == 2
    assert f"is the cluster up? ray up -y {file}\nno route to host" in capsys.readouterr().err


def test_fetch_gathers_the_study_on_the_head_copies_it_and_says_how_to_retrain(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = (
        "print('aim-tune-output-begins\\naim-tune-output-ends')\n"
        "args[0] == 'exec' or open(args[3] + 'best_config.yaml', 'w').write('x')"
    )
    notes = ray_that(tmp_path, monkeypatch, body)
    to = tmp_path / "home"
    assert cluster.main(["fetch", str(file), "mine", "--to", str(to)]) == 0
    gathered, copied = notes.read_text().splitlines()
    assert "cluster gather /mnt/shared/aim_tune mine ~/.aim_tune/fetched/mine" in gathered
    assert copied == f"rsync-down|{file}|~/.aim_tune/fetched/mine/|{to / 'mine'}/"
    assert f"python -m aim_tune.retrain {to / 'mine' / 'best_config.yaml'}" in (
        capsys.readouterr().out
    )


def test_a_failed_fetch_leaves_no_empty_folder(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray_that(tmp_path, monkeypatch, "sys.exit(1)")
    assert cluster.main(["fetch", str(file), "mine", "--to", str(tmp_path / "home")]) == 2
    assert "the head does not answer" in capsys.readouterr().err
    assert not (tmp_path / "home" / "mine").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", ".", ""])
def test_fetch_takes_a_name_and_no_path(
    name: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(["fetch", str(file), name]) == 2
    assert "is not the name of a study" in capsys.readouterr().err


def test_ui_prints_the_address_once_the_page_answers_and_ends_the_tunnel(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(cluster, "PAGES", {"MLflow": port})
    body = (
        "import http.server as h\n"
        "server = h.HTTPServer(('127.0.0.1', int(args[3])), h.BaseHTTPRequestHandler)\n"
        "server.handle_request()"
    )
    notes = ray_that(tmp_path, monkeypatch, body)
    assert cluster.main(["ui", str(file)]) == 2  # this tunnel ends by itself
    said = capsys.readouterr()
    assert f"MLflow: http://127.0.0.1:{port}" in said.out
    assert "the tunnel ended by itself" in said.err
    assert notes.read_text() == f"exec|{file}|--port-forward|{port}|sleep infinity\n"


def test_ui_says_why_the_tunnel_could_not_be_opened(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(cluster, "PAGES", {"MLflow": free.getsockname()[1]})
    ray_that(tmp_path, monkeypatch, "sys.exit('Permission denied (publickey).')")
    assert cluster.main(["ui", str(file)]) == 2
    assert "is the cluster up?\nPermission denied (publickey)." in capsys.readouterr().err


def test_ui_names_a_port_that_is_in_use(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        monkeypatch.setattr(cluster, "PAGES", {"MLflow": port})
        assert cluster.main(["ui", str(file)]) == 2
    assert f"port {port} of this machine, for MLflow, is in use" in capsys.readouterr().err


def test_progress_of_an_empty_folder_is_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(["progress", str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    assert os.listdir(tmp_path) == []


def test_progress_tells_how_far_each_study_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).resolve().parents[1]
    study, _ = load_study(root / "search_spaces" / "quickstart.yaml", HOUSE)
    ledger_file = tmp_path / "head/ledger.jsonl"
    copy = LedgerCopy(ledger_file, open_storage(tmp_path / "shared"), "mine")
    with Ledger(ledger_file) as ledger:
        copy.event(
            ledger.append({"event": "declared", "study": study.to_dict(), "study_hash": "x"})
        )
    assert cluster.main(["progress", str(tmp_path / "shared")]) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"mine: unfinished, 0 trainings done, no verdict yet, last record \d+ s ago\n", said
    )
    assert cluster.main(["gather", str(tmp_path / "shared"), "mine", str(tmp_path / "home")]) == 0
    assert (tmp_path / "home/ledger.jsonl").read_bytes() == ledger_file.read_bytes()
    assert cluster.main(["gather", str(tmp_path / "shared"), "other", str(tmp_path / "no")]) == 2
    assert "has no study other; it has: mine" in capsys.readouterr().err
