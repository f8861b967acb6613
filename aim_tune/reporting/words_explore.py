"""What explore came to, in words for the notes beside a verdict. No claim comes from explore."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aim_tune.stats.explored import Explored
from aim_tune.stats.result import Verdict


def explore_notes(verdict: Verdict) -> list[str]:
    """What the blocks go on with, and what explore ended early or lost."""
    found = verdict.explored
    if found is None:
        return []
    lines = []
    if found.warm_start:
        lines.append(
            f"Explore went on from {found.warm_start}; what it chose it chose among its own trials."
        )
    if found.narrowed:
        cut = "; ".join(
            f"{k} {said(found.ranges[k])} of {said(v)}" for k, v in found.narrowed.items()
        )
        lines.append(f"After explore the blocks draw only from what was good for some arm: {cut}.")
    if found.not_narrowed:
        lines.append(f"The ranges are not narrowed: {found.not_narrowed}.")
    lines += _devices(found)
    for what, field in (
        ("Stopped early", "pruned"),
        ("Out of memory", "oom"),
        ("Diverged", "diverged"),
    ):
        budget = verdict.explore_budget or verdict.budget  # plain search is counted as a whole
        counts = {arm: getattr(b, field) for arm, b in budget.items()}
        if any(counts.values()):
            listed = ", ".join(f"{arm} {number}" for arm, number in counts.items())
            lines.append(f"{what} in explore: {listed}.")
    return lines


def _devices(found: Explored) -> list[str]:
    """With step_ms as an objective: the trainings whose step time could not be compared."""
    if "step_ms" not in found.objectives or len(found.devices) < 2:
        return []
    (main, _), *others = found.devices.items()
    each = ", ".join(f"{device} {number}" for device, number in others)
    return [
        f"Explore ran on {len(found.devices)} types of device: its trade-offs are of {main} alone, without "
        f"the trainings on {each}. The search itself was told the step times of the type that its first "
        "trial ran on; trials elsewhere counted as failed there."
    ]


def said(domain: Any) -> str:
    """A domain as a study file writes it, in words: "0.003 to 0.05", "relu or tanh"."""
    if not isinstance(domain, Mapping):
        return f"{domain}"
    ((kind, body),) = domain.items()
    if kind == "choice":
        return " or ".join(str(option) for option in body)
    return f"{body[0]:.3g} to {body[1]:.3g}"
