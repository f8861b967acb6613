"""Descriptions in MLflow: Markdown that says what was found, above the runs and on the verdict run. Pure.

MLflow's page allows headings, lists, tables, links and pictures by address, and pads no table cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aim_tune.spec.study import Study

NOTE_LIMIT = 7500
"""MLflow takes 8,000 characters in a tag."""
PICTURE = "verdict.png"
"""Artifact of the verdict run: the verdict strip."""
RUN_ID = "RUN_ID_OF_THE_VERDICT"
"""Stands for the run's id where it is not known yet; the store puts it in."""


def experiment_note(study: Study, sentence: str = "", run_id: str = "") -> str:
    """Markdown description of the study's experiment; `sentence` is the verdict once there is one, and
    `run_id` the verdict run that holds its picture."""
    arms = ", ".join(f"`{a}`" for a in study.arms)
    first = sentence or _question(study)
    picture = f"{picture_of(run_id)}\n\n" if run_id else ""
    start = study.protocol.explore.went_on_from
    earlier = f"Explore went on from {start.said}. " if start else ""
    return (
        f"{first}\n\n{picture}Backbone `{study.backbone.name}`, data `{study.data.name}`, arms {arms}. "
        f"{earlier}One run is one training of one arm. The saved views (top right of the runs) answer the "
        "usual questions; for others group by the tag `aim.arm` and filter, say "
        "`tags.aim.phase = 'confirm'`. "
        "Test figures stand on confirm runs only; `delta/test_points` is an arm minus the baseline of "
        "the same pair, percentage points."
    )


def picture_of(run_id: str) -> str:
    """Markdown that shows the verdict strip. The address is relative: the server that shows the page has
    the picture; MLflow removes pictures that are embedded in the text."""
    return f"![The verdict](get-artifact?path={PICTURE}&run_uuid={run_id})"


def verdict_note(verdict: Mapping[str, Any], sentence: str, *, pictured: bool = False) -> str:
    """Markdown: the sentence, the picture if the run has one, a table of the arms, one of the comparisons.

    >>> print(verdict_note({"verdict": "not_asked"}, "No comparison was asked."))
    No comparison was asked.
    """
    parts = [sentence, *([picture_of(RUN_ID)] if pictured else [])]
    if arms := verdict.get("arms"):
        parts.append(_table(_ARM_HEAD, [_arm_row(a, s) for a, s in arms.items()]))
        if len(devices := verdict.get("devices") or {}) > 1:
            rows = [_device_row(device, times, arms) for device, times in devices.items()]
            parts += [_DEVICES, _table(("device", *arms), rows)]
    if comparisons := verdict.get("comparisons"):
        rows = [_comparison_row(name, c) for name, c in comparisons.items()]
        parts += ["Differences over blocks:", _table(_COMPARISON_HEAD, rows)]
    if arms:
        parts.append("The full report is the artifact `report.html` of this run.")
    return "\n\n".join(parts)[:NOTE_LIMIT]


_ARM_HEAD = ("arm", "test accuracy", "sd", "runs", "parameters", "step")
_DEVICES = (
    "Times of different types of device are not compared; `step` above is of the first. By type:"
)
_COMPARISON_HEAD = ("comparison", "points", "95 % interval", "blocks won")


def _arm_row(arm: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    parameters, step = summary.get("parameters"), summary.get("step_ms")
    return (
        arm,
        _figure(summary.get("mean_points"), "{:.2f} %"),
        _figure(summary.get("sd_points"), "{:.2f}"),
        str(summary.get("runs", 0)),
        _figure(parameters, "{:,}"),
        _figure(step, "{:.2f} ms"),
    )


def _device_row(device: str, times: Mapping[str, Any], arms: Iterable[str]) -> tuple[str, ...]:
    steps, ratios = times["step_ms"], times["step_ratio"]
    cells = (
        _figure(steps.get(arm), "{:.2f} ms") + _figure(ratios.get(arm), ", × {:.2f}", "")
        for arm in arms
    )
    return (f"{device} ({times['trainings']})", *cells)


def _comparison_row(name: str, comparison: Mapping[str, Any]) -> tuple[str, ...]:
    interval = comparison.get("ci95_points")
    blocks = len(comparison.get("differences_points") or ())
    return (
        name,
        _figure(comparison.get("effect_points"), "{:+.2f}"),
        "{:+.2f} to {:+.2f}".format(*interval) if interval else "-",
        f"{comparison.get('wins', 0)} of {blocks}",
    )


def _figure(value: float | None, pattern: str, unknown: str = "-") -> str:
    return unknown if value is None else pattern.format(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    wide = [tuple(f"{cell}&emsp;" for cell in line) for line in rows]  # MLflow pads no cells
    lines = [head, ("---",) * len(head), *wide]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _question(study: Study) -> str:
    if not study.compares:
        return f"Search for a good configuration of {', '.join(study.arms)}."
    others = " and ".join(study.addon_arms)
    return f"Does it help to add {others} to {study.backbone.name} on {study.data.name}?"
