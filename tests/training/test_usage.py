"""What a training takes of its machine: known where it can be known, None elsewhere, never an error."""

from __future__ import annotations

import mmap
import time

import torch

from aim_tune.training.usage import Usage, resident_mib


def test_a_busy_process_uses_a_core_and_a_sleeping_one_none():
    usage = Usage(torch.device("cpu"))
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert usage.figures()["cpu_percent"] > 0
    usage = Usage(torch.device("cpu"))
    time.sleep(0.2)
    assert usage.figures()["cpu_percent"] < 100


def test_memory_grows_with_what_is_held():
    before = resident_mib()
    with mmap.mmap(-1, 64 * 2**20) as held:  # fresh pages: an allocator may hand out what it had
        held.write(b"x" * (64 * 2**20))
        assert resident_mib() - before > 32


def test_what_the_system_does_not_say_is_none(tmp_path):
    assert resident_mib(tmp_path / "none") is None
    (tmp_path / "statm").write_text("what")
    assert resident_mib(tmp_path / "statm") is None


def test_the_gpu_is_asked_on_a_gpu_only_and_averaged(monkeypatch):
    answers = iter([20, 60])
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: next(answers))
    cpu = Usage(torch.device("cpu"))
    cpu.sample()
    assert cpu.figures()["gpu_percent"] is None
    gpu = Usage(torch.device("cuda", 0))
    gpu.sample()
    gpu.sample()
    assert gpu.figures()["gpu_percent"] == 40


def test_a_gpu_that_does_not_answer_is_asked_once(monkeypatch):
    asked = []

    def refuse(device):
        asked.append(device)
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    usage = Usage(torch.device("cuda", 0))
    usage.sample()
    usage.sample()
    assert (len(asked), usage.figures()["gpu_percent"]) == (1, None)
