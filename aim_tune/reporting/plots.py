"""Pictures of a report as inline SVG: each with a title and one sentence saying what is seen.

Drawn with matplotlib's SVG backend on Figure objects (no pyplot, no global state), text kept as text.
Colors become CSS variables with a fallback, so that one picture serves light, dark and print; each arm
has the same color and marker everywhere (safe for color-blind eyes). Equal input gives equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aim_tune.ledger import History, Training
from aim_tune.reporting.words import comparison_line, count, signed, span
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.budget import Budget
from aim_tune.stats.evidence import twin_scores, whole_blocks
from aim_tune.stats.tuning import expected_best_curve
from aim_tune.stats.verdict import Comparison, Verdict

Importances: TypeAlias = Mapping[str, Mapping[str, tuple[float, float, float]]]
"""Arm -> setting -> (mean, low, high) over blocks; shares of 1."""

ARM_COLORS = ("#5b6473", "#0067b1", "#c2570c", "#00795b", "#a23b7c", "#7a6a00")
"""Baseline, then the add-on arms in the order of the study; on white. Dark ones: see html.py."""
ARM_MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT, BAND = "#101112", "#d4d8de", "#e9edf2"
"""Text and axes; grid; bands. Stand-ins that become CSS variables."""

MOST_POINTS = 3000
"""Of one arm in one picture."""
WIDTH = 4.0
"""Inches: 384 CSS pixels, so that a phone of 375 hardly shrinks the text."""

STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One plot of the report."""

    name: str
    """Short identifier, also the anchor in the page."""
    title: str
    """The question it answers."""
    sentence: str
    """What is seen, with figures."""
    svg: str


def arm_look(study_arms: Sequence[str], arm: str) -> tuple[str, str]:
    """(color, marker) of an arm: the same in every picture and table."""
    others = [a for a in study_arms if a != BASELINE]
    index = 0 if arm == BASELINE else 1 + others.index(arm)
    return ARM_COLORS[index % len(ARM_COLORS)], ARM_MARKERS[index % len(ARM_MARKERS)]


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


def twin_scatter(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """3: validation accuracy of baseline and each other arm at the same shared settings."""
    blocks = whole_blocks(study, history)
    if verdict.arm is None or not blocks:
        return None
    others = [a for a in study.arms if a != BASELINE]
    clouds = {a: _known_twins(twin_scores(history, blocks, a, BASELINE)) for a in others}
    clouds = {a: c for a, c in clouds.items() if c.size}
    if verdict.arm not in clouds:
        return None

    step = every(clouds[verdict.arm].shape[1])

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        low = min(c.min() for c in clouds.values()) - 1
        high = max(c.max() for c in clouds.values()) + 1
        ax.plot([low, high], [low, high], color=INK, lw=0.8)
        for arm, (own, base) in sorted(clouds.items(), key=lambda item: item[0] == verdict.arm):
            color, marker = arm_look(study.arms, arm)
            faint = 0.8 if arm == verdict.arm else 0.45
            shown = slice(None, None, step)
            ax.plot(
                base[shown], own[shown], marker, color=color, ms=4.5, alpha=faint, mew=0, label=arm
            )
        ax.set_xlim(low, high)
        ax.set_ylim(low, high)
        ax.set_aspect("equal")
        ax.set_xlabel("baseline, validation accuracy, %")
        ax.set_ylabel("the arm at the same point, %")
        ax.grid()
        ax.legend(loc="upper left", handletextpad=0.2)

    own, base = clouds[verdict.arm]
    above = int(np.sum(own > base))
    r = verdict.twin_correlation
    paired = f"; the arms' correlation is {r:.2f}" if r is not None else ""
    return Picture(
        name="twins",
        title="Does it help everywhere, or only at bad settings?",
        sentence=f"At the same shared settings {verdict.arm} scores above baseline in {above} of "
        f"{len(own)} twins{paired}. Above the diagonal the arm is ahead.{only_every(step, 'twin')}",
        svg=drawn_svg("twins", draw, height=3.6),
    )


def every(points: int) -> int:
    """Every how manieth of so many points is drawn: a page with 30,000 is slow to open and to read."""
    return -(-points // MOST_POINTS)


def only_every(step: int, what: str) -> str:
    """The sentence that says so; empty where all are drawn."""
    return f" One {what} in {step} is drawn." if step > 1 else ""


def _known_twins(scores_2BN: np.ndarray) -> np.ndarray:
    flat = scores_2BN.reshape(2, -1)
    return flat[:, ~np.isnan(flat).any(axis=0)]


def expected_best_plot(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """4: expected best validation accuracy against trials, one jackknife error over blocks as band."""
    blocks, twins = whole_blocks(study, history), study.protocol.twins
    if verdict.arm is None or len(blocks) < 3 or twins < 2 or verdict.sampler != "random":
        return None
    curves = {}
    for arm in study.arms:
        own = twin_scores(history, blocks, arm, BASELINE)[0]
        if not np.isnan(own).all(axis=1).any():
            curves[arm] = expected_best_curve(own, 3 * twins)

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        ax.axvline(twins, color=INK, lw=0.8, ls=(0, (2, 1.5)))
        for arm, (curve, error) in curves.items():
            color, marker = arm_look(study.arms, arm)
            x = np.arange(1, len(curve) + 1)
            ax.fill_between(x, curve - error, curve + error, color=color, alpha=0.16, lw=0)
            ax.plot(x, curve, color=color, marker=marker, ms=3.5, label=arm)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("trials (dashed: the tuning budget of this study)")
        ax.set_ylabel("expected best validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower right")

    if verdict.gap is None:
        seen = (
            "Expected best of that many random trials; the band is one standard error over blocks."
        )
    else:
        (half, full), (at_half, at_full) = verdict.gap.trials, verdict.gap.points
        trend = "is still closing" if verdict.gap.closing else "does not clearly shrink"
        seen = (
            f"The gap between {verdict.arm} and baseline is {signed(at_half)} points at "
            f"{count(half, 'trial')} and {signed(at_full)} at {full}: it {trend}. Bands: one standard error "
            "over blocks."
        )
    return Picture(
        name="tuning",
        title="Would more tuning of the baseline close the gap?",
        sentence=seen,
        svg=drawn_svg("tuning", draw),
    )


def importance_bars(
    study: Study, importances: Importances, method: str = "fANOVA"
) -> Picture | None:
    """8: importance of each setting per arm, whiskers over blocks."""
    arms = [a for a in study.arms if importances.get(a)]
    if not arms:
        return None
    settings = sorted(
        {s for a in arms for s in importances[a]},
        key=lambda s: (-max(importances[a].get(s, (0.0,))[0] for a in arms), s),
    )

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        thick = 0.8 / len(arms)
        for i, arm in enumerate(arms):
            color, _ = arm_look(study.arms, arm)
            for y, setting in enumerate(settings):
                if setting in importances[arm]:
                    mean, low, high = (100 * v for v in importances[arm][setting])
                    at = y + (i - (len(arms) - 1) / 2) * thick
                    label = arm if setting == next(iter(importances[arm])) else None
                    ax.barh(at, mean, thick * 0.9, color=color, alpha=0.8, label=label)
                    ax.plot([low, high], [at, at], color=INK, lw=1.0)
        ax.set_yticks(range(len(settings)), settings)
        ax.set_ylim(len(settings) - 0.4, -0.6)
        ax.set_xlabel("share of what decides the validation accuracy, %")
        ax.set_xlim(left=0)
        ax.grid(axis="x")
        ax.legend(loc="lower right")

    tops = {a: max(importances[a], key=lambda s: importances[a][s][0]) for a in arms}
    shares = {a: f"{100 * importances[a][s][0]:.0f} %" for a, s in tops.items()}
    named = [f"{setting} for {arm} ({shares[arm]})" for arm, setting in tops.items()]
    if len(arms) > 1 and len(set(tops.values())) == 1:
        each = ", ".join(f"{arm} {share}" for arm, share in shares.items())
        named = [f"{tops[arms[0]]} for every arm ({each})"]
    return Picture(
        name="importance",
        title="Which setting matters?",
        sentence=f"The most important setting is {', '.join(named)} ({method}; whiskers: one block left "
        "out).",
        svg=drawn_svg(
            "importance", draw, height=1.2 + 0.3 * len(settings) * max(1.0, len(arms) / 2)
        ),
    )


def learning_curves(study: Study, history: History) -> Picture | None:
    """10: validation accuracy during training; median per arm, every run thin."""
    stage = "confirm" if any(t.curve for t in history.rows("confirm")) else None
    runs = {arm: [t for t in history.rows(stage, arm) if t.curve] for arm in study.arms}
    runs = {arm: rows for arm, rows in runs.items() if rows}
    if not runs:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for arm, rows in runs.items():
            color, _ = arm_look(study.arms, arm)
            for t in rows:
                x, y = [m.step for m in t.curve], [100 * m.val_accuracy for m in t.curve]
                ax.plot(x, y, color=color, lw=0.5, alpha=0.3)
        for arm, rows in runs.items():
            color, marker = arm_look(study.arms, arm)
            steps, median = _median_curve(rows)
            ax.plot(steps, median, color=color, marker=marker, ms=3.5, lw=2.0, label=arm)
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("validation accuracy, %")
        ax.grid()
        ax.legend(loc="lower right")

    ends = ", ".join(f"{arm} {_median_curve(rows)[1][-1]:.1f} %" for arm, rows in runs.items())
    half = ", ".join(f"{arm} {_at_half(rows):.1f} %" for arm, rows in runs.items())
    which = "confirm runs" if stage else "all trainings"
    return Picture(
        name="curves",
        title="Does one arm start slower?" if len(runs) > 1 else "How did training go?",
        sentence=f"Medians over {which} half-way: {half}; at the end: {ends}. Thin lines are single runs.",
        svg=drawn_svg("curves", draw),
    )


def _median_curve(rows: Sequence[Training]) -> tuple[list[int], list[float]]:
    """Median over runs at the steps that at least half of them measured."""
    by_step: dict[int, list[float]] = {}
    for t in rows:
        for m in t.curve:
            by_step.setdefault(m.step, []).append(100 * m.val_accuracy)
    common = max(map(len, by_step.values()))
    steps = sorted(s for s, values in by_step.items() if len(values) * 2 >= common)
    return steps, [float(np.median(by_step[s])) for s in steps]


def _at_half(rows: Sequence[Training]) -> float:
    steps, median = _median_curve(rows)
    return median[int(np.searchsorted(steps, steps[-1] / 2))]


def budget_ledger(study: Study, verdict: Verdict) -> Picture | None:
    """14: what each arm was granted and used."""
    budget = {arm: b for arm, b in verdict.budget.items() if b.trials}
    if not budget:
        return None
    panels: list[tuple[str, list[float]]] = [
        ("trainings", [b.trials for b in budget.values()]),
        ("steps allotted", [b.steps for b in budget.values()]),
    ]
    if not verdict.mixed:
        panels.append(("training seconds", [b.seconds for b in budget.values()]))

    def draw(figure: Figure) -> None:
        for i, (what, values) in enumerate(panels):
            ax = figure.add_subplot(1, len(panels), i + 1)
            _budget_panel(ax, study, list(budget), values)
            ax.set_title(what, fontsize=9)
            if i:
                ax.set_yticks([])

    same = len({(b.trials, b.steps) for b in budget.values()}) == 1
    one_arm, one = next(iter(budget.items()))
    who = "Every arm" if len(budget) > 1 else one_arm
    granted = (
        f"{who} was granted {count(one.trials, 'training')} and {count(one.steps, 'step')}"
        if same
        else "The arms were granted different budgets"
    )
    used = "; seconds on different types of device are not compared"
    if not verdict.mixed:
        used = _seconds_used(budget)
    bad = {
        a: (b.failed, b.diverged, b.early)
        for a, b in budget.items()
        if b.failed + b.diverged + b.early
    }
    faults = "; ".join(
        f"{a}: {f} failed, {d} diverged, {e} timed out" for a, (f, d, e) in bad.items()
    )
    return Picture(
        name="budget",
        title="Was it fair?" if len(budget) > 1 else "What was spent?",
        sentence=f"{granted}{used}. {faults or 'No training failed, diverged or ran out of time'}.",
        svg=drawn_svg("budget", draw, height=0.9 + 0.4 * len(budget)),
    )


def _seconds_used(budget: Mapping[str, Budget]) -> str:
    slow = max(budget, key=lambda a: budget[a].seconds)
    fast = min(budget, key=lambda a: budget[a].seconds)
    times = budget[slow].seconds / budget[fast].seconds if budget[fast].seconds else 0.0
    return f"; {slow} needed {times:.2f} times the seconds of {fast}" if times > 1 else ""


def _budget_panel(ax: Axes, study: Study, arms: Sequence[str], values: Sequence[float]) -> None:
    for y, (arm, value) in enumerate(zip(arms, values, strict=True)):
        ax.barh(y, value, 0.62, color=arm_look(study.arms, arm)[0], alpha=0.8)
        ax.annotate(
            f"{value:,.0f}",
            (value, y),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    ax.set_yticks(range(len(arms)), arms)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.set_xlim(0, 1.75 * max(*values, 1e-9))
    ax.set_xticks([])
    ax.tick_params(axis="y", length=0)
    ax.spines["bottom"].set_visible(False)


def drawn_svg(name: str, draw: Callable[[Figure], None], *, height: float = 3.0) -> str:
    """`draw`'s figure as an SVG element for a page; `name` keeps ids of several pictures apart."""
    style = {**STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0.0)
        draw(figure)
        for ax in figure.axes:
            ax.patch.set_alpha(0.0)
            ax.set_axisbelow(True)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(out.getvalue(), name)


def _for_page(text: str, name: str) -> str:
    """Without prolog and metadata; the page's fonts and colors; only ids that are referred to."""
    svg = text[text.index("<svg") :]
    for tag in ("metadata", "style"):  # a style element would rule the whole page
        svg = re.sub(rf"<{tag}[ >].*?</{tag}>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    for old in sorted(used):
        svg = svg.replace(f'id="{old}"', f'id="{name}-{old}"').replace(f"#{old}", f"#{name}-{old}")
    svg = svg.replace(INK, "currentColor").replace(FAINT, f"var(--grid,{FAINT})")
    svg = svg.replace(BAND, f"var(--band,{BAND})")
    for i, color in enumerate(ARM_COLORS):
        svg = svg.replace(color, f"var(--arm{i},{color})")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)  # the page's
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub(r'(<svg[^>]*?) width="([\d.]+)pt"', r'\1 role="img"', svg, count=1).strip()


def with_label(picture: Picture) -> str:
    """The SVG with its sentence for readers who do not see it."""
    label = html.escape(f"{picture.title} {picture.sentence}", quote=True)
    return picture.svg.replace("<svg", f'<svg aria-label="{label}"', 1)
