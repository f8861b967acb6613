"""12: what the memory learned, from the pictures that a training's record holds.

One row of channels each for the memory before training, after it, and what the last update wrote for a
few validation images. Drawn as in plots.py; colors and scale are those of addons/pictures.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aim_tune.addons.pictures import Array, MemoryPictures, limit_of, mosaic
from aim_tune.ledger import History
from aim_tune.reporting.plots import Picture, drawn_svg
from aim_tune.reporting.words import count
from aim_tune.spec.study import Study

MOST_DRAWN = 8
"""Channels side by side; more would be too small on a phone."""


def learned_memory(study: Study, history: History) -> Picture | None:
    """The pictures of the first training that has some; None where none has, or they are damaged."""
    found = next((t for t in history.rows() if t.result and t.result.memory), None)
    if found is None or found.result is None or found.result.memory is None:
        return None
    try:
        shown = MemoryPictures.from_dict(found.result.memory)
    except (ValueError, KeyError):
        return None
    rows = _rows(shown)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for ax, (label, maps, limit) in zip(axes, rows, strict=True):
            _strip(ax, label, maps, limit)

    _, height, width = shown.start.shape
    drawn = min(MOST_DRAWN, len(shown.channels))
    strip = 3.9 * (height + 0.5) / (drawn * (width + 0.5))  # inches, of the width beside the labels
    return Picture(
        name="memory",
        title="What did the memory learn?",
        sentence=_sentence(found.arm, shown, drawn),
        svg=drawn_svg("memory", draw, height=0.2 + len(rows) * (min(strip, 2.0) + 0.12)),
    )


def _rows(shown: MemoryPictures) -> list[tuple[str, Array, float]]:
    """(label, channels, number in full color) of each row."""
    learned, written = limit_of(shown.start, shown.end), limit_of(shown.written)
    rows = [("start", shown.start, learned), ("end", shown.end, learned)]
    if len(shown.written) == 1:
        return [*rows, ("written", shown.written[0], written)]
    labels: Sequence[int | None] = shown.labels or [None] * len(shown.written)
    for label, maps in zip(labels, shown.written, strict=True):
        rows.append(("written" if label is None else f"written, class {label}", maps, written))
    return rows


def _strip(ax: Axes, label: str, maps: Array, limit: float) -> None:
    image = mosaic(maps[:MOST_DRAWN], limit, columns=MOST_DRAWN)
    blank = np.full((*image.shape[:2], 1), 255, dtype=np.uint8)
    blank[(image == 255).all(axis=2)] = 0  # gaps show the page
    ax.imshow(np.concatenate([image, blank], axis=2), interpolation="none")
    ax.set_ylabel(f"{label}\n±{limit:.2g}", rotation=0, ha="right", va="center", fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _sentence(arm: str, shown: MemoryPictures, drawn: int) -> str:
    figures = shown.figures()
    text = (
        f"The {count(drawn, 'channel')} of {shown.total} that moved most in the first confirm run of {arm}: "
        f"training moved the numbers by {figures['change']:.2g} (root mean square, {figures['start']:.2g} at "
        "the start; blue is negative, orange positive)"
    )
    if len(shown.written) == 0:
        return f"{text}; nothing rewrites this memory."
    if len(shown.written) == 1:
        return f"{text}; the last row is what updates write for all images alike."
    share = figures["between_images"]
    if math.isnan(share):
        return f"{text}; what updates write is the same number everywhere."
    return (
        f"{text}; {100 * share:.0f} % of the spread of what the last update writes lies between the "
        f"{len(shown.written)} validation images, the rest is common to them."
    )
