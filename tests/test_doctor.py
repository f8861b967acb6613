"""The verb doctor: each fault is named with what to do; a machine in order is told so; nothing is written."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aim_tune import doctor
from aim_tune.spec.study import Resources

GOOD = {"torch": "2.15.0", "torchvision": "0.29.2", "cuda": None, "cards": []}


@pytest.fixture(autouse=True)
def _no_store_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_machine_in_order_is_told_so_and_stays_as_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look_at_torch", lambda: GOOD)
    assert doctor.main(["--out", str(tmp_path / "results")]) == 0
    out = capsys.readouterr().out
    assert "A search can run here" in out
    assert "digits of quickstart: 200 training, 300 validation, 797 sealed test images" in out
    assert list(tmp_path.iterdir()) == []


def test_a_fault_gives_advice_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "look_at_torch", lambda: {"error": "RuntimeError: torchvision::nms"}
    )
    assert doctor.main(["--out", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "torchvision::nms" in out
    assert "do: they must be a pair: pip install" in out
    assert "1 thing is in the way of a search." in out


def test_json_holds_every_finding(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look_at_torch", lambda: GOOD)
    assert doctor.main(["--out", str(tmp_path), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {f["what"] for f in findings} == {
        "Python", "packages", "torch", "GPU", "CPU", "Ray", "MLflow", "study", "data", "disk",
    }  # fmt: skip


def test_an_old_python_is_a_fault():
    assert doctor.check_python((3, 10, 2)).level == "fault"
    assert doctor.check_python((3, 11, 0)).level == "ok"


def test_a_package_in_another_version_is_named_with_the_one_needed(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "2.40.0" if name == "ray" else real(name))
    (fault,) = doctor.check_packages()
    assert fault.found == "ray is 2.40.0, <2.61,>=2.60 is needed"
    assert fault.advice == "pip install -c constraints.txt 'ray<2.61,>=2.60'"


def test_a_missing_package_is_a_fault(monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "optuna" else real(name))
    (fault,) = doctor.check_packages()
    assert fault.found.startswith("optuna is missing")


def test_torch_is_looked_at_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(doctor, "LOOK_AT_TORCH", "import os; os.abort()")
    assert "error" in doctor.look_at_torch()
    monkeypatch.setattr(doctor, "LOOK_AT_TORCH", "raise RuntimeError('no nms')")
    assert doctor.look_at_torch() == {"error": "RuntimeError: no nms"}
    monkeypatch.setattr(doctor, "LOOK_AT_TORCH", 'print(\'{"torch": "1"}\')')
    assert doctor.look_at_torch() == {"torch": "1"}


def test_gpus_are_listed_and_one_that_torch_cannot_see_is_noted():
    card = {**GOOD, "cards": [["NVIDIA H200", 139.7]]}
    assert doctor.check_gpu(card, nvidia=True).found == "NVIDIA H200, 140 GiB"
    unseen = doctor.check_gpu(GOOD, nvidia=True)
    assert (unseen.level, "is a CPU build" in unseen.found) == ("note", True)
    assert doctor.check_gpu(GOOD, nvidia=False).level == "ok"


def test_a_server_that_does_not_answer_is_a_fault_without_its_password(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fault = doctor.check_store(f"http://me:secret@127.0.0.1:{port}", tmp_path)
    assert fault.level == "fault"
    assert "secret" not in fault.found
    assert f"no answer from http://127.0.0.1:{port}" in fault.found


def test_a_store_that_is_not_there_yet_will_be_made(tmp_path):
    finding = doctor.check_store("", tmp_path / "a" / "b")
    assert finding.found == f"{tmp_path / 'a' / 'b' / 'mlflow.db'} (will be made)"
    assert finding.level == "ok"


def test_data_that_are_missing_are_a_fault_with_their_place(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text((Path(__file__).parents[1] / "search_spaces/quickstart.yaml").read_text())
    text = study.read_text()
    start = text.index("data:")
    end = text.index("\n", start)
    study.write_text(f"{text[:start]}data: {{name: cifar10, root: {tmp_path}/none}}{text[end:]}")
    *_, finding = doctor.check_study(study, GOOD)
    assert (finding.level, str(tmp_path) in finding.found) == ("fault", True)


@pytest.mark.parametrize(("free", "level"), [(0.5e9, "fault"), (3e9, "note"), (50e9, "ok")])
def test_a_full_disk_is_told_in_time(tmp_path, monkeypatch, free, level):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Use", (), {"free": free}))
    assert doctor.check_disk(tmp_path).level == level


def test_help_is_light():
    code = (
        "import sys; from aim_tune import doctor; doctor.parser().format_help(); "
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'numpy', 'yaml', 'matplotlib'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CARD = ["NVIDIA H200", 139.7]


@pytest.mark.parametrize(
    ("cpu", "gpu", "cards", "cores", "level", "found"),
    [
        (1, 0, 0, 8, "ok", "1 CPU a trial: 8 at a time here"),
        (4, 0.5, 2, 16, "ok", "4 CPU and 0.5 GPU a trial: 4 at a time here"),
        (1, 1, 0, 8, "fault", "1 CPU and 1 GPU a trial; torch sees no cards here"),
        (1, 2, 1, 8, "fault", "torch sees 1 card here"),
        (4, 2, 4, 16, "ok", "4 CPU and 2 GPU a trial: 2 at a time here"),
        (4, 0, 0, 2, "fault", "4 CPU a trial; there are 2 here"),
    ],
)
def test_what_a_study_asks_for_is_held_against_the_machine(cpu, gpu, cards, cores, level, found):
    seen = {**GOOD, "cards": [CARD] * cards}
    finding = doctor.check_resources("mine", Resources(cpu=cpu, gpu=gpu), seen, cores)
    assert (finding.level, found in finding.found) == (level, True), finding.found
    assert bool(finding.advice) == (level == "fault")


def test_fewer_gpus_are_the_first_advice_where_there_are_some():
    seen = {**GOOD, "cards": [CARD] * 2}
    finding = doctor.check_resources("mine", Resources(gpu=4), seen, 8)
    assert finding.advice == "--set resources.gpu=2, or search on a cluster (--address auto)"


def test_a_study_for_a_gpu_is_refused_here_with_what_to_do(tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[1] / "search_spaces/quickstart.yaml").read_text()
    study = tmp_path / "gpu.yaml"
    study.write_text(text.replace("gpu: 0", "gpu: 1"))
    monkeypatch.setattr(doctor, "look_at_torch", lambda: GOOD)
    assert doctor.main([str(study), "--out", str(tmp_path)]) == 2
    out = " ".join(capsys.readouterr().out.split())
    assert "do: search on a cluster (--address auto), or on the CPU, slowly" in out
