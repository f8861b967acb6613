"""The last screen: verdict, table, paths and commands, whole even in a narrow log."""

from __future__ import annotations

import io

from rich.console import Console

from aim_tune.reporting.terminal import show_summary
from aim_tune.reporting.words import sentence
from aim_tune.stats import decide
from aim_tune.stats.simulate import World, example_study, simulated_history


def screen(verdict, *, width=100, **more):
    out = io.StringIO()
    show_summary(Console(file=out, width=width), verdict, **{"paths": {}, "commands": {}, **more})
    return out.getvalue()


def test_everything_is_on_the_screen():
    study = example_study(blocks=6)
    verdict = decide(study, simulated_history(study, World(effects={"aim": 3.0}).play))
    text = screen(
        verdict,
        paths={"report": "results/example/report.html"},
        commands={"see every training": "sh mlflow/serve.sh results"},
        width=200,
    )
    assert sentence(verdict) in text
    assert "aim − frozen:" in text
    assert "  report  results/example/report.html" in text
    assert "  see every training  sh mlflow/serve.sh results" in text
    assert text.index("Written") < text.index("Next")


def test_a_study_s_text_is_not_markup():
    study = example_study(blocks=3, arms=("baseline", "aim", "[red]x"))
    verdict = decide(study, simulated_history(study, World(effects={}).play))
    assert "[red]x" in screen(verdict)


def test_a_long_path_is_folded_not_cut():
    study = example_study(blocks=3)
    verdict = decide(study, simulated_history(study, World(effects={}).play))
    path = "results/" + "x" * 150
    assert path in screen(verdict, paths={"report": path}, width=60).replace("\n", "").replace(
        " ", ""
    )


def test_views_stand_last_with_their_whole_address():
    study = example_study(blocks=3)
    verdict = decide(study, simulated_history(study, World(effects={}).play))
    address = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=aim_cost&compareRunsMode=CHART"
    text = screen(verdict, commands={"browse": "sh x"}, views={"Cost": address}, width=60)
    assert f"  Cost  {address}" in text
    assert text.index("Next") < text.index("Views in MLflow")
    assert "Views" not in screen(verdict)


def shown_at(width: int, verdict) -> str:
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=True)
    views = {"Verdict": "http://127.0.0.1:5000/#/" + "x" * 70, "Cost": "http://127.0.0.1:5000/#/y"}
    show_summary(console, verdict, paths={}, commands={}, views=views)
    return console.export_text()


def test_an_address_too_long_for_the_line_starts_on_a_line_of_its_own():
    study = example_study(blocks=3)
    verdict = decide(study, simulated_history(study, World(effects={}).play))
    assert "  Verdict  http://127.0.0.1:5000/#/x" in shown_at(140, verdict)
    lines = shown_at(100, verdict).splitlines()
    assert lines[lines.index("  Verdict") + 1].startswith("http://127.0.0.1:5000/#/x")
    assert lines[lines.index("  Cost") + 1] == "http://127.0.0.1:5000/#/y"
