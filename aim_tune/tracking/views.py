"""MLflow's saved views of a study: which runs, grouped how, drawn as what. Pure; nothing is sent here.

A saved view is an experiment tag that MLflow's page reads: `mlflow.sharedViewState.<id>` = JSON {name,
createdAt, updatedAt, state}, state = "deflate;" + base64(zlib(JSON)). That is an internal format of
MLflow 3.15 to 3.x: `supported` says whether a server of some version knows it, the browser test opens
each view. Views hold no data: without them one types the filter by hand.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aim_tune.spec.space import Domain, Fixed
from aim_tune.spec.study import BASELINE, Study
from aim_tune.tracking.content import BY_STEP, PHASES

TAG = "mlflow.sharedViewState."
LIMIT = 20_000
"""Most characters of a tag on an experiment."""
OLDEST, TOO_NEW = (3, 15), (4, 0)
"""Versions of MLflow that draw these views."""

METRICS = (
    "cost/flops", "cost/gpu_hours", "cost/parameters", "cost/peak_mib", "cost/seconds", "cost/step_ms",
    "cost/steps", "cost/training_hours", "cost/trainings",
    "delta/blocks", "delta/ci95_high_points", "delta/ci95_low_points", "delta/effect_points",
    "delta/mde_points", "delta/p_better_new_block", "delta/test_accuracy", "delta/test_points",
    "system/cpu_utilization_percentage", "system/gpu_0_memory_usage_mebibytes",
    "system/gpu_0_utilization_percentage", "system/process_memory_mebibytes",
    "test/accuracy", "test/error", "test/error_points", "train/loss", "train/lr", "val/accuracy",
    "val/best", "val/loss",
)  # fmt: skip
"""Every metric `content` logs. MLflow adds a chart for each one that a view does not mention."""

_BEFORE, _AFTER, *_WRITTEN = PHASES.values()
MEMORY = (_BEFORE, _AFTER, BY_STEP, *_WRITTEN)
"""Every picture `content` logs, in the order of the view."""

Chart = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class View:
    """One saved view."""

    key: str
    """Its identifier, in the tag and in the link."""
    name: str
    """As listed in MLflow."""
    filter: str
    """Which runs, in MLflow's search language."""
    columns: tuple[str, ...]
    """Of the table, such as metrics.`val/best`."""
    charts: tuple[Chart, ...] = ()
    """Empty: the view is a table."""
    wide: Chart | None = None
    """A chart above the others that needs the whole width."""
    group_by: tuple[str, ...] = ()
    """Tags whose equal values are drawn as one, averaged."""
    a_row: int = 2
    """Charts side by side."""
    order_by: str = "attributes.start_time"
    """Largest first; MLflow draws the first 100 runs."""

    @property
    def mode(self) -> Literal["CHART", "TABLE"]:
        """How it is opened; not part of the saved state."""
        return "CHART" if self.charts else "TABLE"


def supported(version: str) -> bool:
    """Whether an MLflow of this version draws the views.

    >>> supported("3.17.2"), supported("3.14.0"), supported("4.0.0"), supported("unknown")
    (True, False, False, False)
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and OLDEST <= tuple(map(int, found.groups())) < TOO_NEW


def views(study: Study) -> tuple[View, ...]:
    """The views of a study, in reading order; a plain search has those that it can fill."""
    return tuple(_views(study))


def tags(study: Study, *, created_ms: int) -> dict[str, str]:
    """Experiment tags that make the views: tag -> value. Equal input gives equal tags."""
    made = {TAG + view.key: _value(view, created_ms) for view in views(study)}
    return {tag: value for tag, value in made.items() if len(value) <= LIMIT}


def links(study: Study, experiment_id: str) -> dict[str, str]:
    """Name of a view -> the part of its address that follows the server's."""
    return {
        view.name: f"#/experiments/{experiment_id}/runs"
        f"?viewStateShareKey={view.key}&compareRunsMode={view.mode}"
        for view in views(study)
    }


def _views(study: Study) -> Iterator[View]:
    arm = _main_arm(study)
    addon = "AiM" if arm == "aim" else arm
    if study.compares:
        yield _verdict()
        yield _confirmation()
        yield _pairs()
    yield _search(study, f"Search: baseline against {addon}" if study.compares else "Search")
    if arm is not None:
        yield _settings(study, arm, f"{addon} settings")
    yield _cost(study)
    if arm is not None and study.protocol.blocks and study.protocol.confirm:
        yield _memory()


def _main_arm(study: Study) -> str | None:
    if "aim" in study.addon_arms:
        return "aim"
    return next(iter(study.addon_arms), None)


def _verdict() -> View:
    figures = ("effect_points", "ci95_low_points", "ci95_high_points", "mde_points", "blocks")
    return View(
        key="aim_verdict",
        name="Verdict",
        filter=_is("aim.phase", "verdict"),
        columns=(
            "attributes.`Description`",
            *(f"metrics.`delta/{figure}`" for figure in figures),
            "metrics.`delta/p_better_new_block`",
            "tags.`aim.verdict`",
        ),
    )


def _confirmation() -> View:
    return View(
        key="aim_confirmation",
        name="Confirmation by arm",
        filter=_is("aim.phase", "confirm"),
        columns=_metrics("test/accuracy", "test/error_points", "delta/test_points", "val/best"),
        charts=(
            _bar("delta/test_points"),
            _bar("test/error_points"),
            _line("val/accuracy"),
        ),
        group_by=("aim.arm",),
    )


def _pairs() -> View:
    return View(
        key="aim_pairs",
        name="Pair differences",
        filter=f"{_is('aim.phase', 'confirm')} AND tags.`aim.arm` != '{BASELINE}'",
        columns=("tags.`aim.pair`", *_metrics("delta/test_points", "test/accuracy")),
        charts=(_bar("delta/test_points"), _scatter("METRIC", "val/best", "test/accuracy")),
        order_by="metrics.`delta/test_points`",
    )


def _search(study: Study, name: str) -> View:
    return View(
        key="aim_search",
        name=name,
        filter=_is("aim.phase", "twin" if study.protocol.blocks else "explore"),
        columns=_metrics("val/best", "val/accuracy", "cost/seconds"),
        charts=(
            _bar("val/best"),
            _line("val/accuracy"),
            _line("train/loss"),
            _line("train/lr"),
        ),
        group_by=("aim.arm",),
    )


def _settings(study: Study, arm: str, name: str) -> View:
    """From explore, where the design varies; without it every twin draws one."""
    shared = [f"shared.{name}" for name in _searched(study.shared)]
    addon = [f"addon.{name}" for name in _searched(study.addon.space if study.addon else {})]
    phase = "explore" if study.protocol.explore.trials else "twin"
    return View(
        key="aim_settings",
        name=name,
        filter=f"{_is('aim.arm', arm)} AND {_is('aim.phase', phase)}",
        columns=(*(f"params.`{p}`" for p in (*addon, *shared)), *_metrics("val/best")),
        wide=_parallel([*addon, *shared], ["val/best"]),
        charts=tuple(_scatter("PARAM", param, "val/best") for param in (*addon, *shared)),
        order_by="metrics.`val/best`",
    )


def _cost(study: Study) -> View:
    return View(
        key="aim_cost",
        name="Cost",
        filter=_is("aim.phase", "confirm" if study.compares else "explore"),
        columns=_metrics("cost/step_ms", "cost/parameters", "cost/flops", "cost/seconds"),
        charts=(
            _bar("cost/step_ms"),
            _scatter("METRIC", "cost/step_ms", "val/best"),
            _bar("cost/parameters"),
            _bar("cost/flops"),
            _bar("cost/seconds"),
            _bar("cost/peak_mib"),
            _bar("system/cpu_utilization_percentage"),
            _bar("system/process_memory_mebibytes"),
            _bar("system/gpu_0_utilization_percentage"),
        ),
        group_by=("aim.arm", "aim.device"),  # a mean over two types of device says nothing
    )


def _memory() -> View:
    """Pictures exist of the add-on's first confirm run."""
    return View(
        key="aim_memory",
        name="Memory images",
        filter=f"{_is('aim.phase', 'confirm')} AND tags.`mlflow.loggedImages` = 'True'",
        columns=("tags.`aim.pair`", *_metrics("val/best", "test/accuracy")),
        charts=tuple(_image(key) for key in MEMORY),
        a_row=3,
    )


def _is(tag: str, value: str) -> str:
    return f"tags.`{tag}` = '{value}'"


def _metrics(*names: str) -> tuple[str, ...]:
    return tuple(f"metrics.`{name}`" for name in names)


def _searched(space: Mapping[str, Domain]) -> list[str]:
    return [name for name, domain in space.items() if not isinstance(domain, Fixed)]


def _bar(metric: str) -> Chart:
    return {"type": "BAR", "metricKey": metric}


def _line(metric: str) -> Chart:
    return {
        "type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric], "lineSmoothness": 0,
        "scaleType": "linear", "xAxisScaleType": "linear", "xAxisKey": "step",
        "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [], "range": {},
        "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
    }  # fmt: skip


def _scatter(kind: Literal["METRIC", "PARAM"], x: str, y: str) -> Chart:
    """`kind` is that of x; y is a metric."""
    axes = {"xaxis": {"type": kind, "key": x}, "yaxis": {"type": "METRIC", "key": y}}
    return {"type": "SCATTER", **axes}


def _image(key: str) -> Chart:
    """A picture, with a slider where it was taken at several steps."""
    return {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False}


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> Chart:
    chosen = {"selectedParams": list(params), "selectedMetrics": list(metrics)}
    return {"type": "PARALLEL", "showAllRuns": True, **chosen}


def _value(view: View, created_ms: int) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(_state(view)).encode(), 9)).decode()
    envelope: Mapping[str, Any] = {
        "name": view.name,
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": f"deflate;{packed}",
    }
    return json.dumps(envelope)


def _state(view: View) -> dict[str, Any]:
    group = {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": tag} for tag in view.group_by],
    }
    return {
        "searchFilter": view.filter,
        "orderByKey": view.order_by,
        "orderByAsc": False,
        "selectedColumns": list(view.columns),
        "runsHiddenMode": "SHOW_ALL",
        "groupBy": group if view.group_by else None,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,  # keeps MLflow from sorting sections of its own in between
        "compareRunCharts": _cards(view),
        "compareRunSections": _sections(view),
    }


def _sections(view: View) -> list[dict[str, Any]]:
    """A full-width one where the view has a wide chart, then the others side by side."""
    wide = [(f"{view.key}_wide", f"{view.name}, all at once", 1)] if view.wide else []
    kept = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return [
        {"uuid": uuid, "name": name, "columns": columns, **kept}
        for uuid, name, columns in (*wide, (view.key, view.name, view.a_row))
    ]


def _cards(view: View) -> list[Chart]:
    """The view's charts, then every other metric and picture as a deleted one, so that MLflow adds none
    for it."""
    shown = {chart.get("metricKey") for chart in view.charts}
    alone = {chart["imageKeys"][0] for chart in view.charts if chart["type"] == "IMAGE"}
    rest = [{**_bar(metric), "deleted": True} for metric in METRICS if metric not in shown]
    rest += [{**_image(k), "deleted": True} for k in MEMORY if k not in alone]
    wide = [{**view.wide, "metricSectionId": f"{view.key}_wide"}] if view.wide else []
    base = {
        "metricSectionId": view.key, "isGenerated": False, "deleted": False,
        "runsCountToCompare": 100,
    }  # fmt: skip
    return [
        {**base, "uuid": f"{view.key}_{i}", **chart}
        for i, chart in enumerate([*wide, *view.charts, *rest])
    ]
