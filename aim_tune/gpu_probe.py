"""What one training takes of a GPU: a few steps of each arm, one after the other, with nothing beside it.

Runs on a worker that has a GPU for itself. The peak is reached in the first steps, where activations,
gradients and the optimizer's state are all there.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from aim_tune.spec.request import Request
from aim_tune.spec.study import Study
from aim_tune.twin import prepare, train_arm

STEPS = 3


def probe(study: Study, request: Request) -> dict[str, float | str]:
    """peak_mib that torch took for the arm that takes most, total_mib of the GPU, and its name as device."""
    device = prepare(study.resources)
    recipe = replace(study.recipe, steps=STEPS, epochs=None, evaluations=1)
    short = replace(study, recipe=recipe)
    peaks = []
    for arm in request.arms:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        train_arm(short, request, arm)
        peaks.append(torch.cuda.max_memory_reserved(device) / 2**20)
    properties = torch.cuda.get_device_properties(device)
    return {
        "peak_mib": max(peaks),
        "total_mib": properties.total_memory / 2**20,
        "device": properties.name,
    }
