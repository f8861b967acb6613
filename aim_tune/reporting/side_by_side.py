"""Several studies on one page: the effect of each as a row, then a table. Decides nothing anew.

Effects (arm minus baseline within one study) may be set side by side; levels only where data and test
images are the same, which the page says. There is no pooled figure: studies that were chosen after
looking are no sample.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from aim_tune.ledger import History
from aim_tune.reporting.html import card, figure_card, html_table, whole_page
from aim_tune.reporting.plots import BAND, INK, Picture, arm_look, drawn_svg
from aim_tune.reporting.words import LABELS, sentence, signed, span
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Result:
    """One study as decided."""

    study: Study
    history: History
    verdict: Verdict
    report: Path
    """Its own page."""


def write_side_by_side(path: Path, results: Sequence[Result]) -> Path:
    """Write the page to `path`, whole or not at all, and return the path."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(side_by_side_html(results, path.parent), encoding="utf-8")
    os.replace(beside, path)
    return path


def side_by_side_html(results: Sequence[Result], folder: Path) -> str:
    """The page as text; its links to the studies' pages start from `folder`."""
    effects = effect_rows(results)
    parts = [
        f'<header><p class="kicker">aim_tune · {len(results)} studies side by side</p>'
        f"<h1>{escape(summary(results))}</h1></header>",
        figure_card(effects) if effects else "",
        card(
            "The studies",
            f'<div class="names">{_table(results, folder)}</div>',
            f'<p class="quiet">{escape(_limits(results))}</p>',
        ),
        card("In words", _sentences(results)),
    ]
    return whole_page("side by side", "\n".join(p for p in parts if p))


def summary(results: Sequence[Result]) -> str:
    """How many studies came out how.

    One line, such as "2 studies: 1 better, 1 no evidence."
    """
    words = [LABELS[r.verdict.verdict].lower() for r in results]
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    return f"{len(results)} studies: {counts}."


def effect_rows(results: Sequence[Result]) -> Picture | None:
    """Effect and 95 % interval of each study that compares, one row each."""
    rows = [r for r in results if r.verdict.effect_points is not None]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        ax.axvline(0, color=INK, lw=0.8)
        for y, r in enumerate(rows):
            rope = r.verdict.rope_points
            ax.fill_between([-rope, rope], y - 0.36, y + 0.36, color=BAND, lw=0, zorder=0)
            color, marker = arm_look(r.study.arms, r.verdict.arm or BASELINE)
            if r.verdict.ci95_points:
                ax.plot(r.verdict.ci95_points, [y, y], color=color, lw=2.2)
            ax.plot([r.verdict.effect_points or 0.0], [y], marker, color=color, ms=7)
        ax.set_yticks(range(len(rows)), [_short(r.study.name) for r in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("arm − baseline in test accuracy, points")
        ax.grid(axis="x")

    seen = "; ".join(
        f"{r.study.name} {signed(r.verdict.effect_points)} ({span(r.verdict.ci95_points)})"
        for r in rows
    )
    return Picture(
        name="verdict",
        title="The effect in each study",
        sentence=f"{seen}. Bars are 95 % intervals, bands each study's region of no practical difference.",
        svg=drawn_svg("effects", draw, height=0.8 + 0.36 * len(rows)),
    )


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def _table(results: Sequence[Result], folder: Path) -> str:
    head = (
        "study", "backbone", "data", "verdict", "effect", "95 % interval", "could have seen", "blocks",
        "baseline", "arm", "step time",
    )  # fmt: skip
    return html_table(head, [_row(r, folder) for r in results], (0, 1, 2, 3))


def _row(r: Result, folder: Path) -> list[str]:
    v = r.verdict
    base, arm = v.arms.get(BASELINE), v.arms.get(v.arm or "")
    link = Path(os.path.relpath(r.report.resolve(), folder.resolve())).as_posix()
    interim = " (interim)" if v.interim else ""
    return [
        f'<a href="{escape(link)}">{_name(r.study.name)}</a>',
        _name(r.study.backbone.name), _name(r.study.data.name), LABELS[v.verdict] + interim,
        "—" if v.effect_points is None else signed(v.effect_points),
        "—" if v.ci95_points is None else escape(span(v.ci95_points)),
        "—" if v.mde_points is None else f"{v.mde_points:.2f}",
        f"{v.blocks}", *(_level(s.mean_points if s else None) for s in (base, arm)), _times(v),
    ]  # fmt: skip


def _name(text: str) -> str:
    """A name that may break after its underscores."""
    return escape(text).replace("_", "_<wbr>")


def _times(verdict: Verdict) -> str:
    """Step time of the arm over the baseline's, on each type of device."""
    ratios = {device: d.step_ratio.get(verdict.arm or "") for device, d in verdict.devices.items()}
    known = {device: f"× {ratio:.2f}" for device, ratio in ratios.items() if ratio is not None}
    if len(verdict.devices) < 2:
        return next(iter(known.values()), "—")
    return "<br>".join(f"{text} on {escape(device)}" for device, text in known.items()) or "—"


def _level(points: float | None) -> str:
    return "—" if points is None else f"{points:.2f} %"


def _limits(results: Sequence[Result]) -> str:
    digests = {str((r.history.declared or {}).get("data_digest")) for r in results}
    same = (
        "All used the same data: levels may be compared, but not as a test; the same test images were "
        "looked at in each."
        if len(digests) == 1
        else "The data differ: compare effects, not levels."
    )
    return f"{same} Each interval is that study's own; none is adjusted for the number of studies."


def _sentences(results: Sequence[Result]) -> str:
    lines = (
        f"<li><b>{escape(r.study.name)}</b>: {escape(sentence(r.verdict))}</li>" for r in results
    )
    return f"<ul>{''.join(lines)}</ul>"
