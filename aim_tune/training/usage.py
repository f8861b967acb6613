"""What a training takes of its machine: share of the processor, memory, share of the GPU.

Read where the training runs, a few microseconds each, and reported with its result. Figures are of the
worker's whole process, which trains one network at a time; what cannot be read is None.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch


class Usage:
    """Starts counting when it is made; `sample` now and then, `figures` at the end.

    >>> usage = Usage(torch.device("cpu"))
    >>> sorted(usage.figures())
    ['cpu_percent', 'gpu_percent', 'rss_mib']
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began, self._cpu = time.perf_counter(), time.process_time()
        self._gpu: list[float] = []

    def sample(self) -> None:
        """Note how busy the GPU is right now; nothing on a CPU or without NVIDIA's Python package."""
        if self._device.type != "cuda":
            return
        try:
            self._gpu.append(float(torch.cuda.utilization(self._device)))
        except Exception:  # package missing, driver too old, not permitted in a container
            self._device = torch.device("cpu")

    def figures(self) -> dict[str, Any]:
        """cpu_percent (100: one core busy all the time), rss_mib, gpu_percent (mean of the samples)."""
        wall = time.perf_counter() - self._began
        return {
            "cpu_percent": 100 * (time.process_time() - self._cpu) / wall if wall > 0 else None,
            "rss_mib": resident_mib(),
            "gpu_percent": fmean(self._gpu) if self._gpu else None,
        }


def resident_mib(statm: Path = Path("/proc/self/statm")) -> float | None:
    """Memory that this process holds now, MiB; None where the system does not say."""
    try:
        pages = int(statm.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
