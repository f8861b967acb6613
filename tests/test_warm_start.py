"""A study that goes on from an earlier one, from the command to its files: what is refused, what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import aim_tune
from aim_tune import export, search
from aim_tune.ledger import History, read_history
from aim_tune.protocol.earlier import recorded_in, taken_from
from aim_tune.report import read_results
from aim_tune.spec import load_plain
from aim_tune.tracking.content import verdict_content
from aim_tune.tracking.notes import experiment_note

EXPLORE = ("--set", "protocol.explore={trials: 4, lag: 1}")
HERE = ("--engine", "in_process", "--tracking", "off")
Run = Callable[..., int]


def outcome(folder: Path) -> dict[Any, Any]:
    """Everything that must not depend on how a study came to its end."""
    return {
        key: (t.point.to_dict(), dict(t.streams), t.score, t.test_accuracy)
        for key, t in history_of(folder).trainings.items()
    }


def history_of(folder: Path) -> History:
    return read_history(folder / "ledger.jsonl")


def cut(folder: Path, lines: int) -> None:
    """The ledger as a driver leaves it that is killed after so many records."""
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:lines]))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def lines_to(folder: Path, position: str) -> int:
    """Number of records up to the end of a request."""
    done = [r.get("position") if r["event"] == "request_done" else None for r in records(folder)]
    return done.index(position) + 1


@pytest.fixture(scope="module")
def made(tiny_results: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/first, of four explore trials; results/second goes on from it; beside them tiny.yaml."""
    home = tmp_path_factory.mktemp("warm")
    shutil.copy(tiny_results.parent.parent / "tiny.yaml", home)
    call = [str(home / "tiny.yaml"), "--out", str(home / "results"), *HERE, *EXPLORE, "--quiet"]
    assert search.main([*call, "--set", "name=first"]) == 0
    start = f"protocol.explore.warm_start={home / 'results' / 'first'}"
    assert search.main([*call, "--set", "name=second", "--set", start]) == 0
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of all that, to be changed."""
    return shutil.copytree(made, tmp_path / "home")


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*flags)`: the command that made results/second; the exit code."""
    monkeypatch.chdir(home)

    def call(*flags: str, start: str = "results/first", name: str = "second") -> int:
        own = ["--set", f"name={name}", "--set", f"protocol.explore.warm_start={start}"]
        return search.main(["tiny.yaml", "--out", "results", *HERE, *EXPLORE, *own, *flags])

    return call


# --- what it does -------------------------------------------------------------------------------


def test_the_second_study_tries_the_best_of_the_first_again_on_streams_of_its_own(made):
    first, second = (history_of(made / "results" / name) for name in ("first", "second"))
    best = max(first.rows("explore", "aim"), key=lambda t: t.score)
    again = second.trainings["explore/1", "aim"]
    assert best.index > 0, "the published design is the best: the test says nothing"
    assert again.point == best.point
    assert not set(again.streams.values()) & set(best.streams.values())
    published = [h.trainings["explore/0", "aim"].point for h in (first, second)]
    assert published[0] == published[1]


def test_the_ledger_holds_what_came_over_once_in_its_first_record(made):
    there, history = (history_of(made / "results" / name) for name in ("first", "second"))
    kinds = [record["event"] for record in records(made / "results" / "second")]
    assert (kinds[0], kinds.count("declared")) == ("declared", 1)
    found = recorded_in(history)
    assert found == taken_from(read_results(made / "results" / "first")[0], there)
    assert (found.study, found.study_hash) == ("first", there.declared["study_hash"])
    assert (found.records, len(found.trials)) == (there.events, 4)
    study = load_plain(made / "results" / "second" / "study.yaml")
    assert study["protocol"]["explore"]["warm_start"] == {
        "study": "first", "study_hash": found.study_hash, "trials": 4, "digest": found.start.digest,
    }  # fmt: skip


@pytest.mark.parametrize("end", ["declared", "explore/0", "explore/2", "block/0/twin/0"])
def test_killed_anywhere_it_comes_to_the_same_end_without_the_earlier_folder(
    home, run, capsys, end
):
    second = home / "results" / "second"
    whole = outcome(second)
    cut(second, 1 if end == "declared" else lines_to(second, end) + 1)
    shutil.rmtree(home / "results" / "first")
    assert run() == 0
    assert outcome(second) == whole
    assert "Explore went on from 4 trials of study first." in capsys.readouterr().out


def test_ray_with_two_slots_comes_to_the_same_end(home, run, ray_session):
    whole = outcome(home / "results" / "second")
    shutil.rmtree(home / "results" / "second")
    assert run("--engine", "ray", "--slots", "2", "--quiet") == 0
    assert outcome(home / "results" / "second") == whole


def test_an_earlier_study_that_has_gone_on_since_is_still_the_same_one(home, run):
    first, second = home / "results" / "first", home / "results" / "second"
    whole = (first / "ledger.jsonl").read_bytes()
    shutil.rmtree(second)
    cut(first, lines_to(first, "explore/1"))
    assert run("--quiet") == 0
    assert len(recorded_in(history_of(second)).trials) == 2
    done = outcome(second)
    cut(second, lines_to(second, "explore/1"))
    (first / "ledger.jsonl").write_bytes(whole)
    assert run("--quiet") == 0
    assert outcome(second) == done
    assert len(recorded_in(history_of(second)).trials) == 2


def test_a_fork_goes_on_from_what_its_study_took_over(home, run):
    shutil.rmtree(home / "results" / "first")
    assert run("--quiet", "--fork", "--set", "protocol.seed=3") == 0
    forked = recorded_in(history_of(home / "results" / "second-2"))
    assert forked == recorded_in(history_of(home / "results" / "second"))
    assert run("--quiet", "--fork", "--set", "protocol.seed=3") == 0
    assert not (home / "results" / "second-3").exists()


def test_a_study_may_go_on_from_its_own_first_run_as_a_fork(home, run, capsys):
    assert run(name="first") == 2
    assert "protocol.explore.warm_start: nothing then, 4 trials of study first" in (
        capsys.readouterr().err
    )
    assert run("--fork", name="first") == 0
    assert recorded_in(history_of(home / "results" / "first-2")).study == "first"


def test_the_resolved_study_goes_on_in_its_folder_and_says_what_it_needs_elsewhere(
    home, run, capsys
):
    second = home / "results" / "second"
    whole = outcome(second)
    shutil.rmtree(home / "results" / "first")
    cut(second, lines_to(second, "explore/1"))
    resolved = [str(second / "study.yaml"), *HERE, "--quiet"]
    assert search.main([*resolved, "--out", "results"]) == 0
    assert outcome(second) == whole
    assert search.main([*resolved, "--out", "elsewhere"]) == 2
    said = capsys.readouterr().err
    assert (
        "the 4 trials of study first that this study went on from are in its ledger alone" in said
    )
    assert not (home / "elsewhere").exists()


def test_from_python_and_from_a_file(home, monkeypatch):
    monkeypatch.chdir(home)
    asked = load_plain(home / "tiny.yaml")
    asked["name"] = "second"
    asked["protocol"]["explore"] = {"trials": 4, "lag": 1, "warm_start": "results/first"}
    here = {"engine": "in_process", "tracking": "off", "quiet": True}
    before = history_of(home / "results" / "second").events
    found = aim_tune.run(asked, out="results", **here)
    assert found.history.events == before  # the very same study: nothing is left to do
    assert found.study.protocol.explore.warm_start.study == "first"
    again = aim_tune.run(found.study, out="results", **here)
    assert again.history.events == before


# --- what is refused ----------------------------------------------------------------------------


def test_another_earlier_study_is_refused_with_the_difference(home, run, capsys):
    first, second = home / "results" / "first", home / "results" / "second"
    then = recorded_in(history_of(second)).start.digest
    before = (second / "ledger.jsonl").read_bytes()
    shutil.rmtree(first)
    call = ["tiny.yaml", "--out", "results", *HERE, *EXPLORE, "--set", "name=first", "--quiet"]
    assert search.main([*call, "--set", "protocol.seed=5"]) == 0
    capsys.readouterr()
    assert run() == 2
    said = capsys.readouterr().err
    assert "results/second holds another study:" in said
    assert (
        f"warm_start: 4 trials of study first (digest {then}) then, 4 trials of study first" in said
    )
    assert "--fork" in said
    assert (second / "ledger.jsonl").read_bytes() == before
    cold = [*call[:-3], "--set", "name=second"]
    assert search.main(cold) == 2
    assert f"warm_start: 4 trials of study first (digest {then}) then, nothing now" in (
        capsys.readouterr().err
    )


def test_another_search_is_refused_with_every_difference_before_anything_starts(home, run, capsys):
    changes = ("recipe.steps=7", "shared.lr={log_uniform: [1.0e-4, 0.1]}", "backbone.width=4",
               "data.val_images=41", "addon.update_width=4", "arms=[baseline, aim, frozen]")  # fmt: skip
    assert run(*(f for change in changes for f in ("--set", change)), name="third") == 2
    said = capsys.readouterr().err
    assert f"warm_start: study first in {home / 'results' / 'first'} made another search:" in said
    for line in (
        "recipe.steps: 6 there, 7 here",
        "shared.lr.log_uniform: [0.001, 0.1] there, [0.0001, 0.1] here",
        "backbone.width: 8 there, 4 here",
        "data.val_images: 40 there, 41 here",
        "addon.update_width: 16 there, 4 here",
        "arms of explore: ['baseline', 'aim'] there, ['baseline', 'aim', 'frozen'] here",
    ):
        assert line in said
    assert "Make this study the same in these keys, name another earlier study" in said
    assert not (home / "results" / "third").exists()


def test_other_images_of_the_same_name_are_refused(home, run, capsys):
    ledger = home / "results" / "first" / "ledger.jsonl"
    declared, rest = ledger.read_text().split("\n", 1)
    record = json.loads(declared)
    record.pop("crc")
    record["data_digest"] = "0123"
    ledger.write_text(json.dumps(record) + "\n" + rest)
    assert run(name="third") == 2
    assert "data: the images or labels differ (digest 0123 there," in capsys.readouterr().err


def test_how_much_is_explored_may_differ(home, run):
    more = ("--set", "protocol.explore.trials=5", "--set", "protocol.explore.narrow=true")
    seed = ("--set", "protocol.seed=9")
    assert run(*more, *seed, "--quiet", name="third") == 0
    assert len(history_of(home / "results" / "third").rows("explore", "aim")) == 5


def test_a_folder_without_a_study_is_refused(home, run, capsys):
    assert run(start="results/frist", name="third") == 2
    said = capsys.readouterr().err
    assert f"no study can be read in {home / 'results' / 'frist'} (no ledger.jsonl)" in said
    assert "Name the results folder of the earlier study" in said
    (home / "results" / "first" / "ledger.jsonl").write_bytes(b"")
    assert run(name="third") == 2
    assert "has not begun yet; wait, or remove the key" in capsys.readouterr().err


def test_a_damaged_earlier_ledger_is_refused_but_not_missed_by_a_study_that_has_begun(
    home, run, capsys
):
    ledger = home / "results" / "first" / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"explore/2"', b'"explore/7"'))
    assert run(name="third") == 2
    assert "is damaged" in capsys.readouterr().err
    assert run("--quiet") == 0


def test_a_study_without_explore_trials_or_without_finished_ones_is_refused(
    home, run, capsys, tiny_results
):
    assert run(start=str(tiny_results), name="third") == 2
    assert "has no explore stage (protocol.explore.trials is 0)" in capsys.readouterr().err
    cut(home / "results" / "first", 3)
    assert run(name="third") == 2
    said = capsys.readouterr().err
    assert "of the 4 explore trials of study first" in said
    assert "0 are finished and none has a score. Let it run on first" in said
    assert not (home / "results" / "third").exists()


# --- what is said -------------------------------------------------------------------------------


def test_the_plan_says_what_comes_over_and_writes_nothing(home, run, capsys):
    first = home / "results" / "first"
    cut(first, lines_to(first, "explore/2"))
    assert run("--dry-run", name="third") == 0
    line = "warm start   Explore goes on from 3 trials of study first (of 4 planned; 3 finished)."
    assert line in capsys.readouterr().out
    assert not (home / "results" / "third").exists()
    assert run("--dry-run", "--set", "recipe.steps=7", name="third") == 2


def test_other_code_is_said_and_not_refused(home, run, capsys, monkeypatch):
    monkeypatch.setattr("aim_tune.engine.warm_start.code_hash", lambda: "changed")
    assert run("--dry-run", name="third") == 0
    assert "It ran with other code" in capsys.readouterr().out


def test_notes_report_and_mlflow_say_it_in_one_sentence(made):
    folder = made / "results" / "second"
    line = "Explore went on from 4 trials of study first"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert [note for note in verdict["notes"] if line in note] == [
        f"{line}; what it chose it chose among its own trials."
    ]
    assert verdict["explored"]["warm_start"] == "4 trials of study first"
    assert line in (folder / "report.html").read_text()
    study, history = read_results(folder)
    assert f"{line}. One run" in experiment_note(study, "Better.")
    content = verdict_content(study, history, verdict, "Better.")
    assert content.params["protocol.explore.warm_start.study"] == "first"
    cold = json.loads((made / "results" / "first" / "verdict.json").read_text())
    assert not [note for note in cold["notes"] if "went on from" in note]
    assert "went on" not in experiment_note(read_results(made / "results" / "first")[0])


def test_the_optuna_file_leaves_them_out_and_says_so(made, tmp_path, capsys):
    path = tmp_path / "studies.db"
    assert export.main([str(made / "results" / "second"), "--optuna", str(path)]) == 0
    text = "4 trials of study first, which explore went on from"
    assert f"not in there  {text}" in capsys.readouterr().out
    found = optuna.load_study(study_name="second/explore/aim", storage=f"sqlite:///{path}")
    assert (len(found.trials), found.user_attrs) == (4, {"not_in_here": text})
    twins = optuna.load_study(study_name="second/twins/aim", storage=f"sqlite:///{path}")
    assert twins.user_attrs == {}


def test_a_finished_study_is_reported_exported_and_loaded_without_the_earlier_folder(home, run):
    shutil.rmtree(home / "results" / "first")
    folder = home / "results" / "second"
    assert aim_tune.load(folder).status == "complete"
    assert export.main([str(folder), "-o", str(home / "best.yaml")]) == 0
    before = (folder / "ledger.jsonl").read_bytes()
    assert run("--quiet") == 0
    assert (folder / "ledger.jsonl").read_bytes() == before
