"""The last screen of a study: the verdict, the arms, where everything lies, what to do next.

Works on a terminal and in a log file; text from a study is never read as markup.
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aim_tune.reporting.words import LABELS, comparison_line, notes, sentence
from aim_tune.stats.verdict import ArmSummary, Verdict

STYLES = {"better": "green", "worse": "red", "withheld": "red", "equivalent": "cyan"}
"""Verdict -> color of its frame."""


def show_summary(
    console: Console,
    verdict: Verdict,
    *,
    paths: Mapping[str, str],
    commands: Mapping[str, str],
    views: Mapping[str, str] | None = None,
) -> None:
    """Print the verdict, a table of the arms, `paths` (what -> where), `commands` (why -> command) and
    `views` (name -> address in MLflow)."""
    style = STYLES.get(verdict.verdict, "default")
    console.print()
    console.print(
        Panel(_verdict(verdict), title=LABELS[verdict.verdict], border_style=style, padding=(1, 2))
    )
    console.print(_arms(verdict))
    console.print()
    for title, lines in (
        ("Written", paths),
        ("Next", commands),
        ("Views in MLflow, once it is up", views or {}),
    ):
        if lines:
            console.print(Text(title, style="bold"))
            _pairs(console, lines)


def _verdict(verdict: Verdict) -> Group:
    others = list(verdict.comparisons.values())[1:]
    lines = [comparison_line(c) for c in others if c.effect_points is not None] + notes(verdict)
    return Group(
        Text(sentence(verdict), style="bold"),
        *([Text("")] if lines else []),
        *(Text(f"· {line}", style="dim") for line in lines),
    )


def _arms(verdict: Verdict) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("arm", no_wrap=True)
    for name in ("test accuracy", "sd", "trainings", "seconds", "parameters", "failed", "diverged"):
        table.add_column(name, justify="right")
    for arm, summary in verdict.arms.items():
        table.add_row(Text(arm), *_figures(verdict, arm, summary))
    return table


def _figures(verdict: Verdict, arm: str, summary: ArmSummary) -> list[str]:
    budget = verdict.budget[arm]
    return [
        "—" if summary.mean_points is None else f"{summary.mean_points:.2f} %",
        "—" if summary.sd_points is None else f"{summary.sd_points:.2f}",
        f"{budget.trials:,}", "—" if verdict.mixed else f"{budget.seconds:,.0f}",
        "—" if summary.parameters is None else f"{summary.parameters:,}",
        f"{budget.failed}", f"{budget.diverged}",
    ]  # fmt: skip


def _pairs(console: Console, lines: Mapping[str, str]) -> None:
    """Two columns; the right one is never wrapped by us, so that it can be copied. On a terminal that is
    too narrow for both, the right one starts on a line of its own; addresses can be clicked."""
    width = max(map(len, lines))
    fits = all(width + 4 + len(right) <= console.width for right in lines.values())
    below = console.is_terminal and not fits
    for left, right in lines.items():
        link = f"link {right}" if right.startswith(("http://", "https://")) else ""
        gap = "\n" if below else " " * (width - len(left) + 2)
        console.print(Text.assemble((f"  {left}", "dim"), gap, (right, link)), soft_wrap=True)
