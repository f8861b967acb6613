"""The verb `search`: from a study file to a verdict, refusals, resuming, exit codes. Kills: test_kills.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aim_tune import __main__, search
from aim_tune.engine import resume
from aim_tune.ledger import History, Ledger, read_history

TEXT = """
name: tiny
backbone: {name: resnet8, width: 4}
data: {name: digits, image_size: 8, train_images: 40, val_images: 60}
recipe: {steps: 4, batch_size: 8, evaluations: 2}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}
protocol: {explore: {trials: 2, lag: 1}, blocks: 2, twins: 2, confirm: 1}
"""
KEYS = {
    "verdict", "effect_points", "ci95_points", "blocks", "mde_points", "p_better_new_block",
    "attribution", "metric", "unit", "higher_is_better", "claim", "interim", "budget", "study_hash",
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def run(file: Path, tmp_path: Path) -> Callable[..., int]:
    """`run(*flags)`: the verb on the tiny study, in this process; the exit code."""

    def call(*flags: str) -> int:
        fixed = [str(file), "--out", str(tmp_path / "out"), "--engine", "in_process"]
        tracking = [] if "--tracking" in flags else ["--tracking", "off"]
        return search.main([*fixed, *tracking, *flags])

    return call


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a finished tiny study, made once."""
    folder = tmp_path_factory.mktemp("template")
    (folder / "tiny.yaml").write_text(TEXT)
    flags = ["--out", str(folder / "out"), "--engine", "in_process", "--tracking", "off"]
    assert search.main([str(folder / "tiny.yaml"), *flags, "--quiet"]) == 0
    return folder / "out"


@pytest.fixture
def finished(template: Path, tmp_path: Path) -> Path:
    """OUT/tiny of `run`, as if the study had run to its end."""
    shutil.copytree(template, tmp_path / "out")
    return tmp_path / "out" / "tiny"


def history_of(folder: Path) -> History:
    return read_history(folder / "ledger.jsonl")


def outcome(history: History) -> dict[Any, Any]:
    return {
        key: (t.point.to_dict(), t.score, t.test_accuracy, t.result.weights_sha256)
        for key, t in history.trainings.items()
        if t.result
    }


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [r for r in records if r["event"] == kind]


def test_help_comes_in_half_a_second_without_the_heavy_libraries() -> None:
    code = (
        "import sys, aim_tune.search as s\n"
        "try: s.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'optuna', 'yaml', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "aim_tune.search", "--help"], capture_output=True, check=True
        )
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5


def test_a_study_ends_with_a_verdict_and_its_files(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    folder = tmp_path / "out" / "tiny"
    assert {p.name for p in folder.iterdir() if p.is_file()} >= {
        "study.yaml", "ledger.jsonl", "verdict.json", "report.html", "best_config.yaml",
    }  # fmt: skip
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict.keys() >= KEYS
    assert verdict["blocks"] == 2
    assert verdict["interim"] is False
    words = {"sentence", "notes", "slot_use"}
    assert words <= verdict.keys()
    assert verdict["slot_use"]["slots"] == 1
    assert 0.5 < verdict["slot_use"]["share"] <= 1
    assert history_of(folder).verdict == {k: v for k, v in verdict.items() if k not in words}
    assert len(history_of(folder).looks) == 2
    shown = capsys.readouterr().out
    for command in ("mlflow/serve.sh", "aim_tune.report", "aim_tune.export", "aim_tune.retrain"):
        assert command in shown


def test_a_second_study_on_the_same_test_data_is_counted(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIM_TUNE_REGISTRY", str(tmp_path / "registry.jsonl"))
    small = ("--set", "protocol.explore.trials=0", "--set", "protocol.blocks=1")
    numbers = []
    for name, seed in (("first", 0), ("first", 0), ("second", 1)):
        assert run(*small, "--set", f"name={name}", "--set", f"protocol.seed={seed}") == 0
        text = (tmp_path / "out" / name / "verdict.json").read_text()
        numbers.append(json.loads(text)["study_number"])
    assert numbers == [1, 1, 2]


def test_the_same_command_again_trains_nothing_and_says_the_same(
    run: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--quiet") == 0
    first = capsys.readouterr().out
    before = (finished / "ledger.jsonl").read_bytes()
    assert run("--quiet") == 0
    assert capsys.readouterr().out == first
    assert (finished / "ledger.jsonl").read_bytes() == before
    assert len(first.strip().splitlines()) == 1  # quiet: the verdict in one sentence


def test_a_resume_does_not_search_again_for_what_is_recorded(
    run: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ledger = outcome(history_of(finished)), finished / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[: len(lines) * 3 // 4]))
    proposed: list[Any] = []
    monkeypatch.setattr("optuna.samplers.TPESampler", lambda **kwargs: proposed.append(kwargs))
    assert run("--quiet") == 0
    assert proposed == []
    assert outcome(history_of(finished)) == whole


def test_the_resolved_study_is_a_study_file_of_the_same_study(
    run: Any, finished: Path, tmp_path: Path
) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    again = [str(finished / "study.yaml"), "--out", str(tmp_path / "out"), "--tracking", "off"]
    assert search.main([*again, "--engine", "in_process"]) == 0
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_a_changed_study_is_refused_with_the_differences(
    run: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    assert run("--set", "recipe.steps=5", "--set", "protocol.seed=1") == 2
    said = capsys.readouterr().err
    assert "recipe.steps: 4 then, 5 now" in said
    assert "protocol.seed: 0 then, 1 now" in said
    assert "--fork" in said
    assert (finished / "ledger.jsonl").read_bytes() == before


def test_a_fork_is_a_study_of_its_own_and_resumes_as_one(
    run: Any, finished: Path, tmp_path: Path
) -> None:
    changed = ("--set", "protocol.seed=1", "--fork")
    assert run(*changed) == 0
    fork = tmp_path / "out" / "tiny-2"
    assert history_of(fork).declared["study"]["name"] == "tiny-2"
    before = (fork / "ledger.jsonl").read_bytes()
    assert run(*changed) == 0
    assert (fork / "ledger.jsonl").read_bytes() == before
    assert not (tmp_path / "out" / "tiny-3").exists()


def test_changed_code_or_data_is_refused(
    run: Any,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = resume.code_hashes()
    with monkeypatch.context() as patched:
        patched.setattr(resume, "code_hashes", lambda: {**real, "training/loop.py": "0" * 16})
        assert run() == 2
    assert "code: training/loop.py changed" in capsys.readouterr().err
    history = history_of(finished)
    history.declared["data_digest"] = "else"
    study, info = _study_and_info(tmp_path / "tiny.yaml")
    with pytest.raises(resume.ResumeError, match="data: the images or labels differ"):
        resume.check_same(history, study, info, folder=tmp_path)


def _study_and_info(file: Path) -> tuple[Any, Any]:
    from aim_tune.data.source import check_data
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    study, catalog = load_study(file, HOUSE)
    return study, check_data(study.data, catalog)


def test_blocks_may_grow_and_the_old_ones_are_kept(
    run: Any, finished: Path, tmp_path: Path
) -> None:
    before = outcome(history_of(finished))
    assert run("--set", "protocol.blocks=3") == 0
    after = outcome(history_of(finished))
    assert {k: after[k] for k in before} == before
    assert len(after) == len(before) + 3 * 3
    assert [r["blocks"] for r in events(finished, "extended")] == [3]
    assert json.loads((finished / "verdict.json").read_text())["blocks"] == 3
    assert run("--set", "protocol.blocks=2") == 2  # but not shrink


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dry-run", "--effect", "3") == 0
    shown = capsys.readouterr().out
    assert "3 points are found in" in shown
    assert "24 (explore 6, twin 12, confirm 6), 4 steps each" in shown
    for word in ("detectable", "about", "parameters", "MFLOPs/image", "baseline", "aim", "frozen"):
        assert word in shown
    assert not (tmp_path / "out").exists()


def test_all_faults_are_said_at_once_and_nothing_is_written(
    file: Path, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        "name: tiny\nbackbone: {name: resnet9}\ndata: {name: digits, image_size: 0}\n"
        "recipe: {steps: 4, optimizer: adan}\nprotocol: {blocks: -1, turns: 2}\n"
    )
    assert run() == 2
    said = capsys.readouterr().err
    for line in (2, 3, 4, 5):
        assert f"tiny.yaml:{line}" in said
    assert "did you mean 'resnet8'" in said
    assert said.count("\n") >= 6
    assert not (tmp_path / "out").exists()


def test_a_memory_that_cannot_be_is_refused_before_anything_starts(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--set", "addon.memory_shape=[64, 64, 8]") == 2
    assert "memory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ["in_process", "ray"])
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(
    engine: str, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert run("--engine", engine, "--set", "resources.gpu=1") == 2
    assert "resources.gpu is 1" in capsys.readouterr().err
    assert not events(tmp_path / "out" / "tiny", "declared")


def test_on_the_head_of_a_cluster_what_comes_next_is_said_for_the_laptop(
    finished: Path, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aim_tune.engine import nodes

    monkeypatch.setattr(nodes, "storage_of_the_cluster", lambda: str(finished.parent / "shared"))
    assert run("--address", "auto") == 0
    said = capsys.readouterr().out
    assert "python -m aim_tune.cluster ui FILE" in said
    assert "python -m aim_tune.cluster fetch FILE tiny" in said
    assert "serve.sh" not in said


def test_exit_4_where_the_verdict_is_not_the_wanted_one(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "worse"  # two blocks of untrained networks cannot show it
    assert run("--fail-unless", wrong) == 4
    assert "not worse" in capsys.readouterr().err


def test_exit_3_where_too_many_trainings_failed(
    file: Path, run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)\n"
        "        self.head = torch.nn.Linear(8, classes)\n"
        "    def forward(self, x):\n"
        "        assert not self.training, 'planted'\n"
        "        return self.head(self.conv(x).mean((2, 3)))\n"
        "def fragile(*, classes, image_shape):\n"
        "    return Net(classes)\n"
        "BACKBONES = {'fragile': fragile}\n"
    )
    file.write_text(
        TEXT.replace("{name: resnet8, width: 4}", "{name: fragile}").replace(
            "addon: {name: memory, memory_shape: {choice: [[2, 2, 8], [1, 1, 8]]}, update_width: 4}",
            "arms: [baseline]",
        )
        + "plugins: [lab.py]\n"
    )
    assert run() == 3
    assert "Too many trainings failed" in capsys.readouterr().err
    done = history_of(tmp_path / "out" / "tiny").trainings.values()
    assert {t.status for t in done} == {"failed"}
    assert all("planted" in t.result.detail for t in done)


def test_two_searches_on_one_folder_are_not_let_in(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger(tmp_path / "out" / "tiny" / "ledger.jsonl"):
        assert run() == 2
    assert f"pid {os.getpid()}" in capsys.readouterr().err


def test_a_tracking_server_that_is_not_there_ends_it_before_the_first_training(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert run("--tracking", "on", "--tracking-uri", "http://127.0.0.1:9") == 2
    assert time.monotonic() - began < 20
    assert "http://127.0.0.1:9" in capsys.readouterr().err
    assert not events(tmp_path / "out" / "tiny", "asked")


def test_optional_tracking_goes_on_with_the_ledger(run: Any, tmp_path: Path) -> None:
    assert run("--tracking", "optional", "--tracking-uri", "http://127.0.0.1:9") == 0
    assert (tmp_path / "out" / "tiny" / "verdict.json").is_file()


def test_the_console_script_knows_its_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([]) == 0
    assert re.findall(r"^  (\w+)", capsys.readouterr().out, re.MULTILINE) == list(__main__.VERBS)
    assert __main__.main(["serach"]) == 2
    assert "did you mean 'search'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        __main__.main(["search", "--help"])


def test_the_status_of_a_study_is_read_without_touching_it(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = finished / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    started = [n for n, line in enumerate(lines) if '"event":"training_started"' in line]
    ledger.write_text("".join(lines[: started[10] + 1]))  # in mid-search: one training runs
    before = ledger.read_bytes()
    with Ledger(ledger):
        assert search.main(["--status", str(finished), "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert status["state"] == "running"
        assert status["driver"].startswith(f"pid {os.getpid()} on host")
        assert [r["attempt"] for r in status["running"]] == [1]
        assert (status["trainings_done"], status["trainings"]) == (10, 24)
        assert (status["blocks_done"], status["blocks"]) == (0, 2)
        assert status["seconds_left"] > 0
        assert set(status["best"]) == {"baseline", "aim", "frozen"}
        assert (status["slot_use"]["slots"], status["slot_warning"]) == (1, "")
        assert search.main(["--status", str(finished)]) == 0
        shown = capsys.readouterr().out
        assert "10 of 24 trainings, 0 of 2 blocks, about" in shown
        assert " of 1 slot training on average (" in shown
    assert search.main(["--status", str(finished)]) == 0
    assert "tiny: stopped, last event" in capsys.readouterr().out  # nobody is at work any more
    assert ledger.read_bytes() == before
    assert search.main(["--status", str(finished.parent / "nothing")]) == 2
    assert "no ledger at" in capsys.readouterr().err


def _with_failures(folder: Path, *, requests: int | None) -> None:
    """Every training of the ledger has failed; it is cut after so many requests."""
    kept, ends = [], 0
    for line in (folder / "ledger.jsonl").read_text().splitlines():
        record = json.loads(line)
        del record["crc"]
        if record["event"] == "training_done":
            record["result"] |= {"status": "failed", "detail": "no", "val_accuracy": None}
        kept.append(json.dumps(record, separators=(",", ":")) + "\n")
        ends += record["event"] == "request_done"
        if ends == requests:
            break
    (folder / "ledger.jsonl").write_text("".join(kept))


def test_failures_at_the_beginning_do_not_end_a_study(
    run: Any, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_failures(finished, requests=1)
    assert search.main(["--status", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "tiny: stopped, last event" in shown
    assert "3 failed" in shown
    assert run() == 0  # 3 of 24: it goes on
    assert sum(t.status == "ok" for t in history_of(finished).trainings.values()) == 21


def test_the_status_says_where_too_many_failed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_failures(finished, requests=None)
    assert search.main(["--status", str(finished)]) == 0
    assert "tiny: failed, last event" in capsys.readouterr().out


def test_json_is_one_object_and_progress_goes_elsewhere(
    run: Callable[..., int], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = finished / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-8]))  # the last training is still to come
    assert run("--json") == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (told["study"], told["status"]) == ("tiny", "complete")
    assert told["verdict"] == json.loads((finished / "verdict.json").read_text())
    assert all(Path(path).is_file() for path in told["files"].values())
    assert "trainings" in shown.err
    assert run("--json", "--quiet") == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["sentence"], shown.err) == (told["sentence"], "")
    with pytest.raises(SystemExit, match="2"):
        run("--json", "--dry-run")


def test_no_color_codes_where_the_output_is_no_terminal(
    run: Callable[..., int], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    assert finished.is_dir()
