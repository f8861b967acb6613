"""How a picture of a report is drawn: inline SVG with a title and one sentence saying what is seen.

The pictures lie beside it in plots_*.py, by what they show; pictures.py lists them all. Drawn with
matplotlib's SVG backend on Figure objects (no pyplot, no global state), text kept as text. Colors become
CSS variables with a fallback, so that one picture serves light, dark and print; each arm has the same
color and marker everywhere (safe for color-blind eyes). Equal input gives equal bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from aim_tune.spec.study import BASELINE

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


def every(points: int) -> int:
    """Every how manieth of so many points is drawn: a page with 30,000 is slow to open and to read."""
    return -(-points // MOST_POINTS)


def only_every(step: int, what: str) -> str:
    """The sentence that says so; empty where all are drawn."""
    return f" One {what} in {step} is drawn." if step > 1 else ""


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
