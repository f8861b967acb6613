"""Pictures that look inside: the add-on's settings, how early a ranking is known, which images change.

Drawn as in plots.py. Test labels are not read here: the class of a sealed image is known from any
confirm run that was right about it, and an image nobody was ever right about was never fixed or broken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from aim_tune.ledger import History, Training, unpack_bits, unpack_ints
from aim_tune.reporting.plots import INK, Picture, arm_look, drawn_svg, every, only_every
from aim_tune.reporting.words import count, signed
from aim_tune.spec.space import Fixed
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.tuning import correlation
from aim_tune.stats.verdict import Verdict

CLASSES = 16
"""Most classes drawn: those in which most changes."""
LEAST_RUNS = 6
"""Fewer trainings of an arm give no rank correlation worth drawing."""


def setting_slices(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """9: arm minus baseline at the same shared settings, against each setting of the add-on."""
    if verdict.arm is None or study.addon is None:
        return None
    gaps = _gaps(history, verdict.arm)
    searched = [k for k, domain in study.addon.space.items() if not isinstance(domain, Fixed)]
    slices = {
        k: groups for k in searched if len(groups := _by_value([(p[k], g) for p, g in gaps])) > 1
    }
    if not slices:
        return None
    color, marker = arm_look(study.arms, verdict.arm)
    rows, step = (len(slices) + 1) // 2, every(len(gaps))

    def draw(figure: Figure) -> None:
        for i, (setting, groups) in enumerate(slices.items()):
            ax = figure.add_subplot(rows, min(2, len(slices)), i + 1)
            _slice(ax, groups, color, marker, step)
            ax.set_title(setting, fontsize=9)
            if i % 2 == 0:
                ax.set_ylabel("points over baseline")

    spread = {k: np.ptp([np.median(g) for g in groups.values()]) for k, groups in slices.items()}
    most = max(spread, key=lambda k: spread[k])
    best = max(slices[most], key=lambda v: float(np.median(slices[most][v])))
    return Picture(
        name="slices",
        title="Which design of the add-on does well?",
        sentence=f"{most} moves the median most ({spread[most]:.1f} points), best at {best}: "
        f"{signed(float(np.median(slices[most][best])))} points of validation accuracy over baseline (the "
        f"line at 0) at the same shared settings. {count(len(gaps), 'training')}; bars are medians: a hint "
        f"from the search, no evidence.{only_every(step, 'training')}",
        svg=drawn_svg("slices", draw, height=0.5 + 1.9 * rows),
    )


def _gaps(history: History, arm: str) -> list[tuple[Mapping[str, Any], float]]:
    """(add-on settings, arm minus baseline in validation accuracy, points) of each training."""
    found = []
    explore = history.rows("explore", arm)  # the design varies here; without it in each twin
    for t in explore or history.rows("twin", arm):
        base = history.trainings.get((t.position, BASELINE))
        if (
            t.score is not None
            and base is not None
            and base.score is not None
            and not t.reused_from
            and "pruned" not in (t.status, base.status)  # what each reached is not comparable
        ):
            found.append((t.point.addon, 100 * (t.score - base.score)))
    return found


def _by_value(pairs: Sequence[tuple[Any, float]]) -> dict[str, list[float]]:
    """Gaps by the text of a setting's value, in order of the value; many numbers fall into four bins."""
    values = [v for v, _ in pairs]
    if len({json.dumps(v) for v in values}) > 8:  # a continuous range
        edges = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
        pairs = [(float(edges[np.searchsorted(edges[1:-1], v, side="right")]), g) for v, g in pairs]
    groups: dict[str, list[float]] = {}
    for value, gap in sorted(pairs, key=lambda pair: _rank(pair[0])):
        groups.setdefault(_label(value), []).append(gap)
    return groups


def _rank(value: Any) -> tuple[float, str]:
    size = float(np.prod(value)) if isinstance(value, (list, tuple)) else 0.0
    return (value, "") if isinstance(value, (int, float)) else (size, str(value))


def _label(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "×".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _slice(
    ax: Axes, groups: Mapping[str, Sequence[float]], color: str, marker: str, step: int
) -> None:
    ax.axhline(0, color=INK, lw=0.8)
    for x, gaps in enumerate(groups.values()):
        shown = gaps[::step]
        spread = np.linspace(-0.16, 0.16, len(shown)) if len(shown) > 1 else [0.0]
        ax.plot(x + np.asarray(spread), shown, marker, color=color, ms=3, alpha=0.5, mew=0)
        ax.plot([x - 0.28, x + 0.28], [np.median(gaps)] * 2, color=color, lw=2.4)
    crowded = sum(map(len, groups)) > 14  # half a picture wide
    ax.set_xticks(range(len(groups)), list(groups), rotation=24 if crowded else 0)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.grid(axis="y")


def early_ranks(study: Study, history: History) -> Picture | None:
    """11: rank correlation between the score at each validation pass and the last one."""
    curves = {arm: found for arm in study.arms if (found := _rank_curve(history, arm)) is not None}
    if not curves:
        return None

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for arm, (shares, ranks) in curves.items():
            color, marker = arm_look(study.arms, arm)
            ax.plot(100 * shares, ranks, color=color, marker=marker, ms=3.5, label=arm)
        ax.set_xlabel("share of the training done, %")
        ax.set_ylabel("rank correlation with the end")
        ax.set_ylim(min(0.0, *(float(r.min()) for _, r in curves.values())), 1.05)
        ax.grid()
        ax.legend(loc="lower right")

    quarter, half = (
        ", ".join(f"{arm} {np.interp(at, *c):.2f}" for arm, c in curves.items()).replace("-", "−")
        for at in (0.25, 0.5)
    )
    return Picture(
        name="ranks",
        title="Could bad draws have been stopped early?",
        sentence=f"Spearman's correlation of the score so far with the final one: after a quarter {quarter}; "
        f"half-way {half}. Near 1, stopping early keeps the right ones; where the arms differ, a shared rule "
        "would favor one of them.",
        svg=drawn_svg("ranks", draw),
    )


def _rank_curve(
    history: History, arm: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(share of the steps, Spearman's rho) over the arm's search trainings."""
    rows = [*history.rows("explore", arm), *history.rows("twin", arm)]
    whole = [t for t in rows if t.curve and t.score is not None and not t.reused_from]
    passes = max((len(t.curve) for t in whole), default=0)
    whole = [t for t in whole if len(t.curve) == passes]
    if len(whole) < LEAST_RUNS or passes < 3:
        return None
    scores_TP = np.array([[m.val_accuracy for m in t.curve] for t in whole])
    ranks_TP = np.apply_along_axis(rankdata, 0, scores_TP)
    rho = [correlation(ranks_TP[:, p], ranks_TP[:, -1]) or 0.0 for p in range(passes)]
    return np.arange(1, passes + 1) / passes, np.array(rho)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Changes:
    """What the add-on changes on the sealed images, over all confirm pairs."""

    fixed_C: NDArray[np.float64]
    """Per class: baseline wrong, arm right; share of the looks at that class, percent."""
    broken_C: NDArray[np.float64]
    fixed: float
    """Over all images, percent."""
    broken: float
    pairs: int


def fixed_and_broken(study: Study, history: History, verdict: Verdict) -> Picture | None:
    """13: images that the arm gets right and the baseline does not, and the reverse, per class."""
    changes = None if verdict.interim or verdict.arm is None else _changes(history, verdict.arm)
    if changes is None:
        return None
    net_C = changes.fixed_C - changes.broken_C
    moved = np.argsort(-(changes.fixed_C + changes.broken_C), kind="stable")[:CLASSES]
    shown = np.sort(moved)
    gain, loss = arm_look(study.arms, verdict.arm or "")[0], arm_look(study.arms, BASELINE)[0]

    def draw(figure: Figure) -> None:
        ax = figure.add_subplot()
        for y, c in enumerate(shown):
            ax.barh(y, changes.fixed_C[c], 0.7, color=gain, alpha=0.8, label="" if y else "fixed")
            ax.barh(
                y, -changes.broken_C[c], 0.7, color=loss, alpha=0.8, label="" if y else "broken"
            )
            ax.plot([net_C[c]] * 2, [y - 0.35, y + 0.35], color=INK, lw=1.6)
        ax.axvline(0, color=INK, lw=0.8)
        ax.set_yticks(range(len(shown)), [f"class {c}" for c in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel("share of the class's test images, %")
        ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        ax.grid(axis="x")
        ax.legend(loc="best")

    up, down = int(np.argmax(net_C)), int(np.argmin(net_C))
    return Picture(
        name="changes",
        title="Which images does it fix, and which does it break?",
        sentence=f"Over {count(changes.pairs, 'confirm pair')} {verdict.arm} fixes {changes.fixed:.1f} % of "
        f"the test images, breaks {changes.broken:.1f} %. Most is gained in class {up} ({signed(net_C[up])} "
        f"points), least in class {down} ({signed(net_C[down])}); the tick is the difference.",
        svg=drawn_svg("changes", draw, height=1.1 + 0.24 * len(shown)),
    )


def _changes(history: History, arm: str) -> _Changes | None:
    pairs = [
        (t, history.trainings[t.position, BASELINE])
        for t in history.rows("confirm", arm)
        if (t.position, BASELINE) in history.trainings
    ]
    pairs = [p for p in pairs if all(t.correct for t in p)]
    classes_N = _known_classes(history)
    if not pairs or classes_N is None:
        return None
    own, base = (np.array([unpack_bits(p[i].correct or "0:") for p in pairs]) for i in (0, 1))
    if own.shape[1] != len(classes_N):
        return None
    fixed_N, broken_N = (own & ~base).mean(axis=0), (~own & base).mean(axis=0)
    members = [classes_N == c for c in range(int(classes_N.max()) + 1)]
    return _Changes(
        fixed_C=np.array([100 * fixed_N[m].mean() if m.any() else 0.0 for m in members]),
        broken_C=np.array([100 * broken_N[m].mean() if m.any() else 0.0 for m in members]),
        fixed=100 * float(fixed_N.mean()),
        broken=100 * float(broken_N.mean()),
        pairs=len(pairs),
    )


def _known_classes(history: History) -> NDArray[np.int64] | None:
    """Class of each sealed image that some confirm run was right about, else -1; None: not recorded."""
    known: NDArray[np.int64] | None = None
    for t in history.rows("confirm"):
        predicted = _predictions(t)
        if predicted is None or t.correct is None:
            continue
        right = unpack_bits(t.correct)
        known = np.full(len(right), -1, dtype=np.int64) if known is None else known
        if len(right) == len(known) == len(predicted):
            known[right] = predicted[right]
    return known if known is not None and (known >= 0).any() else None


def _predictions(training: Training) -> NDArray[np.int64] | None:
    packed = training.result.predictions if training.result else None
    return unpack_ints(packed) if packed else None
