"""Pictures of the verdict: every comparison over the region of no practical difference, and each block.

Drawn as in plots.py. The strip is also there as a PNG, for pages that take no SVG.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aim_tune.ledger import History
from aim_tune.reporting.plots import BAND, INK, STYLE, WIDTH, Picture, arm_look, drawn_svg
from aim_tune.reporting.words import comparison_line, count, span
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.evidence import whole_blocks
from aim_tune.stats.verdict import Comparison, Verdict


def verdict_strip(verdict: Verdict) -> Picture | None:
    """1: every comparison as a dot with its intervals over the ROPE band, and the detectable effect."""
    rows = [c for c in verdict.comparisons.values() if c.effect_points is not None]
    if not rows:
        return None
    return Picture(
        name="verdict",
        title="Does it help, and could we have seen it?",
        sentence=_strip_sentence(verdict, rows[0]),
        svg=drawn_svg("verdict", _strip(verdict, rows), height=_strip_height(rows)),
    )


def strip_png(verdict: Verdict) -> bytes | None:
    """1 as a PNG on white, for pages that take no SVG; None where nothing is compared."""
    rows = [c for c in verdict.comparisons.values() if c.effect_points is not None]
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 1.5, _strip_height(rows)), layout="constrained")
        _strip(verdict, rows)(figure)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=120, metadata={"Software": None})
    return out.getvalue()


def _strip_height(rows: Sequence[Comparison]) -> float:
    return 0.8 + 0.36 * len(rows)


def _strip(verdict: Verdict, rows: Sequence[Comparison]) -> Callable[[Figure], None]:
    arms = list(verdict.arms)

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        _strip_background(ax, verdict)
        for y, comparison in enumerate(rows):
            _strip_row(ax, y, comparison, arm_look(arms, comparison.arm))
        ax.set_yticks(range(len(rows)), [f"{c.arm} − {c.reference}" for c in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("difference in test accuracy, points")

    return draw


def _strip_background(ax: Axes, verdict: Verdict) -> None:
    rope, mde, reach = verdict.rope_points, verdict.mde_points or 0.0, _reach(verdict)
    ax.axvspan(-rope, rope, color=BAND, lw=0, zorder=0)
    ax.axvline(0, color=INK, lw=0.8, zorder=1)
    if _ticks_fit(verdict):
        reach = max(reach, mde)
        for side in (-mde, mde):
            ax.plot([side, side], [-0.28, 0.28], color=INK, lw=1.0, ls=(0, (2, 1.5)), zorder=2)
    ax.set_xlim(-1.12 * reach, 1.12 * reach)


def _reach(verdict: Verdict) -> float:
    """The largest difference to be drawn, points."""
    rows = verdict.comparisons.values()
    ends = [abs(e) for c in rows for i in (c.ci95_points, c.ci95_block_points) if i for e in i]
    return max([*ends, *(abs(c.effect_points or 0.0) for c in rows), verdict.rope_points, 0.01])


def _ticks_fit(verdict: Verdict) -> bool:
    """Whether the detectable effect is on a scale that still shows the rest."""
    return 0 < (verdict.mde_points or 0.0) < 3 * _reach(verdict)


def _strip_row(ax: Axes, y: int, c: Comparison, look: tuple[str, str]) -> None:
    color, marker = look
    for interval, width, shade in ((c.ci95_points, 2.2, 1.0), (c.ci95_block_points, 6.0, 0.32)):
        if interval:
            ax.plot(interval, [y, y], color=color, lw=width, alpha=shade, solid_capstyle="butt")
    ax.plot([c.effect_points or 0.0], [y], marker, color=color, ms=7, mec=color)


def _strip_sentence(verdict: Verdict, main: Comparison) -> str:
    parts = [f"{comparison_line(main)}."]
    if not verdict.anytime and main.ci95_block_points and main.covers_examples:
        parts.append(
            f"The thick bar is the interval on this test set alone ({span(main.ci95_block_points)})."
        )
    if verdict.anytime:
        parts.append("The intervals are anytime-valid: looking early does not bias them.")
    band = f"The band is the region of no practical difference (±{verdict.rope_points:g})"
    if verdict.mde_points:
        where = "dashed ticks" if _ticks_fit(verdict) else "off this scale"
        band += f"; {where}: the effect found with 80 % power (±{verdict.mde_points:.2f})"
    return " ".join([*parts, band + "."])


def paired_slopes(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """2: one line per block from baseline to arm; not drawn while blocks are missing."""
    if verdict.interim or verdict.arm is None:
        return None
    levels = _levels(study, history, verdict.arm)
    if not levels:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        colors = [arm_look(study.arms, BASELINE)[0], arm_look(study.arms, verdict.arm or "")[0]]
        for base, arm in levels:
            up = arm > base
            color = colors[1] if up else colors[0]
            ax.plot([0, 1], [base, arm], color=color, lw=1.2, alpha=0.75, ls="-" if up else "--")
            for x, y in ((0, base), (1, arm)):
                ax.plot([x], [y], "o", color=colors[x], ms=4.5)
        ends = np.mean(levels, axis=0)
        for x, y in enumerate(ends):
            ax.plot([x - 0.1, x + 0.1], [y, y], color=INK, lw=2.2)
            ax.annotate(
                f"{y:.2f}", (x - 0.14 if x == 0 else x + 0.14, y), va="center",
                ha="right" if x == 0 else "left", weight="bold",
            )  # fmt: skip
        ax.set_xticks([0, 1], [BASELINE, verdict.arm or ""])
        ax.set_xlim(-0.5, 1.5)
        ax.set_ylabel("test accuracy, %")
        ax.grid(axis="y")

    wins = sum(arm > base for base, arm in levels)
    level = sum(arm == base for base, arm in levels)
    ties = f" and level in {level}" if level else ""
    return Picture(
        name="slopes",
        title="Is it one lucky block?",
        sentence=f"{verdict.arm} is above baseline in {wins} of {count(len(levels), 'block')}{ties}; "
        "each line is one block's confirm runs, dashed where baseline is not behind.",
        svg=drawn_svg("slopes", draw),
    )


def _levels(study: Study, history: History, arm: str) -> list[tuple[float, float]]:
    """(baseline, arm) mean test accuracy of each whole block, percent."""
    found = []
    for block in whole_blocks(study, history):
        scores = [
            [
                t.test_accuracy
                for t in history.rows("confirm", name)
                if t.block == block and t.test_accuracy is not None
            ]
            for name in (BASELINE, arm)
        ]
        if all(scores):
            found.append((100 * float(np.mean(scores[0])), 100 * float(np.mean(scores[1]))))
    return found
