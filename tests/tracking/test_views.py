"""Saved views: what MLflow's page reads back, whole and small; a failure costs the views alone."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from aim_tune.stats.simulate import example_study
from aim_tune.tracking import views
from aim_tune.tracking.content import training_content, verdict_content
from aim_tune.tracking.place import default_uri
from aim_tune.tracking.store import Store

NAMES = [
    "Verdict", "Confirmation by arm", "Pair differences", "Search: baseline against AiM",
    "AiM settings", "Cost", "Memory images",
]  # fmt: skip


def read_back(value: str) -> tuple[str, dict[str, Any]]:
    """As MLflow's page does: (name, state)."""
    envelope = json.loads(value)
    assert isinstance(envelope["createdAt"], int)
    kind, _, packed = envelope["state"].partition(";")
    assert kind == "deflate"
    return envelope["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture
def states(study) -> dict[str, dict[str, Any]]:
    return dict(map(read_back, views.tags(study, created_ms=1).values()))


def test_a_comparison_has_its_views_in_reading_order(study, states):
    assert list(states) == list(views.links(study, "7")) == NAMES
    assert views.links(study, "7")["Verdict"] == (
        "#/experiments/7/runs?viewStateShareKey=aim_verdict&compareRunsMode=TABLE"
    )


def test_a_plain_search_has_the_views_it_can_fill():
    assert list(views.links(example_study(blocks=0, explore=4, arms=("aim",)), "7")) == [
        "Search", "AiM settings", "Cost",
    ]  # fmt: skip


def test_confirm_runs_are_grouped_by_arm_and_all_shown(states):
    state = states["Confirmation by arm"]
    assert state["searchFilter"] == "tags.`aim.phase` = 'confirm'"
    assert state["groupBy"] == {
        "aggregateFunction": "average",
        "groupByKeys": [{"mode": "tag", "groupByData": "aim.arm"}],
    }
    assert state["runsHiddenMode"] == "SHOW_ALL"


def test_the_settings_that_are_searched_are_drawn_and_no_fixed_one(study, states):
    state = states["AiM settings"]
    (parallel,) = [c for c in state["compareRunCharts"] if c["type"] == "PARALLEL"]
    assert "shared.lr" in parallel["selectedParams"]
    assert all(p.startswith(("shared.", "addon.")) for p in parallel["selectedParams"])
    searched = set(views._searched(study.shared)) | set(views._searched(study.addon.space))
    assert {p.split(".", 1)[1] for p in parallel["selectedParams"]} == searched


def test_every_logged_metric_is_known_so_that_no_chart_appears_by_itself(study, records):
    from aim_tune.ledger import History

    history = History()
    for record in records:
        history.apply(record)
    figures = {"effect_points": 1.0, "ci95_points": [0, 2], "mde_points": 1.0, "blocks": 2}
    verdict = {"verdict": "better", "p_better_new_block": 0.9, **figures}
    contents = [training_content(study, history, t) for t in history.rows()]
    contents.append(verdict_content(study, history, verdict, "x"))
    assert {r.key for c in contents for r in c.readings} <= set(views.METRICS)


def test_each_chart_has_its_own_id_and_stands_in_a_section_of_the_view(states):
    for state in states.values():
        ids = [chart["uuid"] for chart in state["compareRunCharts"]]
        assert len(ids) == len(set(ids))
        sections = {section["uuid"] for section in state["compareRunSections"]}
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} <= sections


def test_views_fit_into_a_tag(study):
    assert max(map(len, views.tags(study, created_ms=1).values())) < views.LIMIT / 5


@pytest.mark.parametrize(
    ("version", "known"),
    [("3.14.9", False), ("3.15.0", True), ("3.17.2", True), ("4.0.0rc1", False)],
)
def test_only_versions_that_draw_them_get_views(version, known):
    assert views.supported(version) is known


def experiment(folder):
    client = MlflowClient(tracking_uri=default_uri(folder.parent))
    return client, client.get_experiment_by_name(f"aim_tune/{folder.name}")


def test_the_mirror_saves_them_and_gives_their_links(folder, records, mirrored):
    mirror = mirrored(records[:9])
    _, made = experiment(folder)
    assert list(mirror.links) == NAMES
    assert mirror.views["Cost"] == f"http://127.0.0.1:5000/{mirror.links['Cost']}"
    for link in mirror.links.values():
        key = link.split("viewStateShareKey=")[1].split("&")[0]
        assert views.TAG + key in made.tags
        assert link.startswith(f"#/experiments/{made.experiment_id}/")


def test_saving_them_again_changes_nothing(folder, records, write_ledger, mirrored):
    write_ledger(records[:9])
    mirrored([])
    before = experiment(folder)[1].tags
    mirrored([])
    assert experiment(folder)[1].tags == before


@pytest.mark.parametrize("broken", ["version", "tag_experiment"])
def test_an_mlflow_that_takes_no_views_still_gets_the_runs(
    folder, records, monkeypatch, broken, mirrored
):
    def refuse(*_: object) -> None:
        raise MlflowException("no such thing")

    monkeypatch.setattr(Store, broken, refuse)
    mirror = mirrored(records[:20])
    client, made = experiment(folder)
    assert mirror.links == {}
    assert len(client.search_runs([made.experiment_id])) > 0


def test_an_older_mlflow_gets_no_tags(folder, records, monkeypatch, mirrored):
    monkeypatch.setattr(Store, "version", lambda _: "3.14.0")
    assert mirrored(records[:9]).links == {}
    assert not any(tag.startswith(views.TAG) for tag in experiment(folder)[1].tags)
