"""The verb report: the same verdict from the same ledger, at any time, without touching anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aim_tune import report
from aim_tune.ledger import Ledger
from aim_tune.stats.simulate import World, example_study, simulated_events


def write_results(folder: Path, **protocol) -> Path:
    study = example_study(**{"blocks": 3, "twins": 2, "confirm": 1, **protocol})
    world = World(effects={"aim": 30.0, "frozen": 0.0}, test_examples=200)
    folder.mkdir(parents=True)
    lines = [json.dumps(r, default=float) + "\n" for r in simulated_events(study, world.play)]
    (folder / "ledger.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results") / "example")


def test_verdict_and_page_are_written_anew_and_stay_the_same(results, capsys):
    assert report.main([str(results)]) == 0
    first = {name: (results / name).read_bytes() for name in ("verdict.json", "report.html")}
    assert "clearly better than baseline" in " ".join(capsys.readouterr().out.split())
    assert json.loads(first["verdict.json"])["verdict"] == "better"
    for name in first:
        (results / name).unlink()
    assert report.main([str(results)]) == 0
    assert {name: (results / name).read_bytes() for name in first} == first
    assert not list(results.glob("*.tmp"))


def test_the_ledger_is_only_read(results):
    before = (results / "ledger.jsonl").read_bytes()
    report.main([str(results)])
    assert (results / "ledger.jsonl").read_bytes() == before


def test_a_search_that_still_runs_gives_an_interim_verdict(tmp_path):
    folder = write_results(tmp_path / "example")
    lines = (folder / "ledger.jsonl").read_text().splitlines(keepends=True)
    (folder / "ledger.jsonl").write_text("".join(lines[: len(lines) // 2]))
    with Ledger(folder / "ledger.jsonl"):  # held by a search
        assert report.main([str(folder)]) == 0
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (verdict["interim"], verdict["blocks"]) == (True, 1)


def test_which_study_on_its_data_it_is_stays_as_recorded(tmp_path):
    folder = write_results(tmp_path / "example")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(
            json.dumps({"event": "verdict", "time": 0, "verdict": {"study_number": 3}}) + "\n"
        )
    assert report.main([str(folder)]) == 0
    assert json.loads((folder / "verdict.json").read_text())["study_number"] == 3


def test_blocks_that_were_added_belong_to_the_study(tmp_path):
    folder = write_results(tmp_path / "example")
    with (folder / "ledger.jsonl").open("a") as file:
        file.write(json.dumps({"event": "extended", "time": 0, "blocks": 5}) + "\n")
    study, _ = report.read_results(folder)
    assert study.protocol.blocks == 5


def test_another_verdict_than_the_wanted_one_exits_with_4(results, capsys):
    assert report.main([str(results), "--fail-unless", "equivalent"]) == 4
    assert "The verdict is better, not equivalent." in capsys.readouterr().err
    assert report.main([str(results), "--fail-unless", "better"]) == 0


def test_a_folder_without_a_ledger_says_what_to_run(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "run `python -m aim_tune.search` first" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_studies_names_some(tmp_path, capsys):
    for name in ("one", "two"):
        write_results(tmp_path / name)
    assert report.main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"holds studies and is none itself; name one, such as {tmp_path / 'one'}" in error


def test_an_empty_ledger_is_bad_input(tmp_path, capsys):
    (tmp_path / "ledger.jsonl").write_text("")
    assert report.main([str(tmp_path)]) == 2
    assert "the search has not begun yet" in capsys.readouterr().err
    with Ledger(tmp_path / "ledger.jsonl"):  # a search whose engine is starting
        assert report.main([str(tmp_path)]) == 2
    assert f"is empty: the search is starting (pid {os.getpid()} on host" in capsys.readouterr().err


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    parent = tmp_path_factory.mktemp("both")
    return [write_results(parent / name) for name in ("first", "second")]


def test_several_studies_get_a_page_side_by_side(two, capsys):
    assert report.main([str(folder) for folder in two]) == 0
    page = (two[0].parent / "side_by_side.html").read_text()
    assert "2 studies: 2 better." in page
    assert 'href="first/report.html"' in page
    assert 'href="second/report.html"' in page
    assert "All used the same data" in page
    assert "2 studies: 2 better." in capsys.readouterr().out
    assert all((folder / "verdict.json").is_file() for folder in two)


def test_the_page_of_several_goes_where_it_is_asked_for(two, tmp_path):
    assert report.main([*map(str, two), "-o", str(tmp_path / "page.html")]) == 0
    assert 'href="../' in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_bad_input(two, tmp_path, capsys):
    assert report.main([*map(str, two), "-o", str(tmp_path / "none" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_every_study_has_to_meet_the_wanted_verdict(two, tmp_path, capsys):
    other = write_results(tmp_path / "other", rope_points=50.0)
    assert report.main([str(two[0]), str(other), "--fail-unless", "worse"]) == 4
    assert capsys.readouterr().err.count("not worse.") == 2


@pytest.mark.parametrize("verb", ["report", "export", "retrain"])
def test_help_is_light(verb):
    """The modules loaded are counted, not the seconds: those depend on the machine."""
    code = (
        f"import sys; from aim_tune import {verb}; {verb}.parser().format_help(); "
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'numpy', 'yaml', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
