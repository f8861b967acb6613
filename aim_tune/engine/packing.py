"""How many trainings share a GPU: Ray's fractions are bookkeeping, nothing keeps them within the memory.

One training of each arm is measured alone on a GPU, before anything is packed; where the trials that
`resources.gpu` asks for would not fit, fewer are packed, and it is said. Knows no Ray and no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from aim_tune.errors import ResourceError

CONTEXT_MIB = 600.0
"""What CUDA and its libraries take in each process, beside what torch counts (measured: 400 to 600)."""
USABLE = 0.95
"""Share of a GPU's memory that is given away: allocators leave gaps."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one trial was seen to take, alone on a GPU."""

    peak_mib: float
    """Of the arm that takes most."""
    total_mib: float
    """Of the GPU."""
    device: str


def per_gpu(gpu: float) -> int:
    """How many trials of this fraction Ray puts on one GPU.

    >>> per_gpu(0.25), per_gpu(0.3), per_gpu(1.0)
    (4, 3, 1)
    """
    return math.floor(1 / gpu + 1e-9)


def fitting(gpu: float, need: Need) -> float:
    """The fraction to ask Ray for, so that trials on one GPU fit its memory: `gpu` or more.

    Raises ResourceError where not even one fits.
    """
    fit = math.floor(USABLE * need.total_mib / (need.peak_mib + CONTEXT_MIB))
    if fit < 1:
        raise ResourceError(
            f"one training takes {need.peak_mib:,.0f} MiB of {need.device}, which has "
            f"{need.total_mib:,.0f} MiB: make recipe.batch_size or the network smaller, or use a larger GPU."
        )
    return gpu if fit >= per_gpu(gpu) else 1 / fit


def said(gpu: float, allowed: float, need: Need) -> str:
    """What to tell people where fewer are packed than asked for; "" where nothing was changed."""
    if allowed == gpu:
        return ""
    return (
        f"resources.gpu {gpu:g} would put {per_gpu(gpu)} trainings on a {need.device}, but one takes "
        f"{need.peak_mib:,.0f} MiB and {CONTEXT_MIB:,.0f} for CUDA of {need.total_mib:,.0f} MiB: packing "
        f"{per_gpu(allowed)} instead. Results are the same."
    )
