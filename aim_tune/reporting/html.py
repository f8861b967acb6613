"""report.html: one self-contained page. Verdict sentence first, then pictures, tables, provenance.

No network, no scripts, system fonts; follows the reader's light or dark setting, a phone's width and
paper. Text that came from a user is escaped. Equal input gives an equal file: times shown are the ledger's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aim_tune.ledger import History, Training
from aim_tune.reporting.pictures import not_drawn, pictures
from aim_tune.reporting.plots import (
    ARM_COLORS,
    ARM_MARKERS,
    Picture,
    arm_look,
    with_label,
)
from aim_tune.reporting.plots_explore import explore_rows, offer_head, offer_rows
from aim_tune.reporting.plots_tuning import Importances
from aim_tune.reporting.words import LABELS, count, notes, sentence, signed, span
from aim_tune.reporting.words_slots import slots_line, slots_warning
from aim_tune.spec import yaml_io
from aim_tune.spec.study import Study
from aim_tune.stats.amounts import blocks_to_run
from aim_tune.stats.devices import DeviceTimes
from aim_tune.stats.evidence import whole_blocks
from aim_tune.stats.slots import slot_use
from aim_tune.stats.verdict import ArmSummary, Comparison, Verdict

CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
DARK_ARMS = ("#a9b4c2", "#5fb4ff", "#ffa05c", "#3fd0a5", "#f08fcc", "#d9c84a")
"""`plots.ARM_COLORS` for dark pages, in the same order."""
SYMBOLS = dict(zip(ARM_MARKERS, "●■▲◆▼✚", strict=True))
"""Marker -> the same shape as text."""
SIGNS = {"better": "▲", "worse": "▼", "equivalent": "＝", "withheld": "✕"}
"""Verdict -> a shape for its badge, so that color is never the only sign."""


def write_report(
    path: Path,
    study: Study,
    history: History,
    verdict: Verdict,
    importances: Importances | None = None,
    method: str = "fANOVA",
) -> Path:
    """Write the report to `path`, whole or not at all, and return the path; `method` is how the
    importances were found."""
    text = report_html(study, history, verdict, importances, method)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
    return path


def report_html(
    study: Study,
    history: History,
    verdict: Verdict,
    importances: Importances | None = None,
    method: str = "fANOVA",
) -> str:
    """The page as text."""
    drawn = pictures(study, history, verdict, importances, method)
    strip = [p for p in drawn if p.name == "verdict"]
    others = [p for p in drawn if p.name != "verdict"]
    parts = [
        _hero(study, verdict),
        *map(figure_card, strip),
        card("Every comparison", _comparison_table(verdict), _more(verdict)),
        card("The best found", _best_table(verdict, history)),
        card("The arms", _arms_table(study, verdict)),
        card("What explore chose", _explore_tables(verdict)),
        f'<div class="grid">{"".join(map(figure_card, others))}</div>' if others else "",
        card("What this says and what it does not", _list(notes(verdict) + _limits(verdict))),
        card("Where it comes from", _provenance(study, history, verdict)),
        _details("Pictures that are not drawn, and why", _list(not_drawn(drawn, verdict))),
        _details("The study, as it was run", f"<pre>{escape(_study_text(study))}</pre>"),
        _details("Every training", _trainings_table(history)),
    ]
    return whole_page(study.name, "\n".join(p for p in parts if p))


def _hero(study: Study, verdict: Verdict) -> str:
    interim = ' <span class="tag">interim</span>' if verdict.interim else ""
    sign = SIGNS.get(verdict.verdict, "")
    label = f"{sign} {LABELS[verdict.verdict]}".strip()
    return (
        f'<header><p class="kicker">aim_tune · {escape(study.name)}</p>'
        f'<p><span class="badge {verdict.verdict}">{escape(label)}</span>{interim}</p>'
        f"<h1>{escape(sentence(verdict))}</h1>{_tiles(verdict)}</header>"
    )


def _tiles(verdict: Verdict) -> str:
    """The figures of the verdict, large."""
    if verdict.effect_points is None:
        return ""
    kind = "anytime-valid" if verdict.anytime else verdict.claim.replace("_", " ")
    tiles = [
        ("effect", signed(verdict.effect_points), "points of test accuracy"),
        ("95 % interval", span(verdict.ci95_points), kind),
    ]
    if verdict.interim:  # nothing else is valid before the end
        tiles.append(("whole blocks", f"{verdict.blocks} of {verdict.blocks_planned}", "so far"))
    else:
        tiles += _final_tiles(verdict)
    cells = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><small>{escape(unit)}</small></div>"
        for name, value, unit in tiles
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def _final_tiles(verdict: Verdict) -> list[tuple[str, str, str]]:
    mde = verdict.mde_points
    return [
        ("ahead in", f"{verdict.wins} of {verdict.blocks}", "blocks"),
        ("better in a new block", _chance(verdict.p_better_new_block), "probability"),
        ("could have seen", "—" if mde is None else f"{mde:.2f}", "points, with 80 % power"),
    ]


def _chance(p: float | None) -> str:
    """Whole percent, never a false 0 or 100."""
    if p is None:
        return "—"
    return "< 1 %" if p < 0.01 else "> 99 %" if p > 0.99 else f"{100 * p:.0f} %"


def figure_card(picture: Picture) -> str:
    """A picture with its question and its sentence."""
    wide = " wide" if picture.name == "verdict" else ""
    return (
        f'<figure id="{picture.name}" class="card{wide}"><h2>{escape(picture.title)}</h2>'
        f"{with_label(picture)}<figcaption>{escape(picture.sentence)}</figcaption></figure>"
    )


def card(title: str, *parts: str) -> str:
    """A titled part of the page; "" where it would be empty."""
    body = "".join(parts)
    return f'<section class="card"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def _list(lines: Sequence[str]) -> str:
    """Bullets; "" without lines."""
    if not lines:
        return ""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _comparison_table(verdict: Verdict) -> str:
    rows = [c for c in verdict.comparisons.values() if c.effect_points is not None]
    if len(rows) < 2:
        return ""
    head = ("arm − reference", "effect", "95 % interval", "p", "ahead in", "could have seen")
    return html_table(head, [_comparison_row(verdict, c) for c in rows])


def _comparison_row(verdict: Verdict, c: Comparison) -> list[str]:
    name = f"{_arm(verdict, c.arm)} − {_arm(verdict, c.reference)}"
    p = "—" if c.p_value is None else f"{c.p_value:.3g}"
    mde = "—" if c.mde_points is None else f"{c.mde_points:.2f}"
    return [
        name, signed(c.effect_points), escape(span(c.ci95_points)), p, f"{c.wins} of {c.blocks}", mde,
    ]  # fmt: skip


def _more(verdict: Verdict) -> str:
    """What the comparison table's figures are."""
    if len(verdict.comparisons) < 2:
        return ""
    return (
        '<p class="quiet">Points of test accuracy over confirm runs. The first line is the question of the '
        "study and not adjusted; the others carry Holm-adjusted p values and intervals.</p>"
    )


def _best_table(verdict: Verdict, history: History) -> str:
    """Plain search: the five best trainings by validation accuracy."""
    rows = [t for t in history.rows() if t.score is not None and t.reused_from is None]
    if verdict.verdict != "not_asked" or not rows:
        return ""
    rows.sort(key=lambda t: -(t.score or 0.0))
    head = ("position", "arm", "validation", "point")
    return html_table(head, [_best_row(verdict, t) for t in rows[:5]], (0, 1, 3))


def _best_row(verdict: Verdict, t: Training) -> list[str]:
    point = _point_text(t.point.shared, t.point.addon)
    return [escape(t.position), _arm(verdict, t.arm), _percent(t.score), escape(point)]


def _explore_tables(verdict: Verdict) -> str:
    """The design, the ranges of the blocks and, with several objectives, the trade-offs."""
    found = verdict.explored
    if found is None or not (found.design or found.narrowed or found.pareto):
        return ""
    chosen = [[escape(what), escape(value)] for what, value in explore_rows(found)]
    text = html_table(("setting", "in the blocks"), chosen, (0, 1)) if found.design else ""
    if found.pareto:
        head = offer_head(found)
        text += html_table(head, offer_rows(found), (0, len(head) - 1))
    return text


def _arms_table(study: Study, verdict: Verdict) -> str:
    head = (
        "arm", "test accuracy", "runs", "parameters", "ms a step", "trainings", "steps", "seconds",
        "failed", "diverged", "test looks",
    )  # fmt: skip
    rows = [_arm_row(verdict, arm, verdict.arms[arm]) for arm in study.arms if arm in verdict.arms]
    quiet = _times_table(study, verdict)
    if any(b.trials for b in verdict.explore_budget.values()):
        found = verdict.explored
        one_type = found is None or len(found.devices) < 2
        spent = ", ".join(
            f"{arm} {count(b.trials, 'training')}" + (f" ({b.seconds:,.0f} s)" if one_type else "")
            for arm, b in verdict.explore_budget.items()
        )
        quiet += f'<p class="quiet">Explore, counted apart: {escape(spent)}.</p>'
    return html_table(head, rows) + quiet


def _times_table(study: Study, verdict: Verdict) -> str:
    """Step times on each type of device, where there are several: ms, and over the baseline's."""
    if not verdict.mixed:
        return ""
    arms = [arm for arm in study.arms if arm in verdict.arms]
    head = ("ms a step on", "trainings", *arms)
    rows = [
        [escape(device), f"{d.trainings:,}", *(_time(d, arm) for arm in arms)]
        for device, d in verdict.devices.items()
    ]
    said = "Steps on each type of device, and over the baseline's in the same requests:"
    return f'<p class="quiet">{said}</p>{html_table(head, rows)}'


def _time(times: DeviceTimes, arm: str) -> str:
    if arm not in times.step_ms:
        return "—"
    ratio = times.step_ratio.get(arm)
    return f"{times.step_ms[arm]:.2f}" + (f" <small>× {ratio:.2f}</small>" if ratio else "")


def _arm_row(verdict: Verdict, arm: str, summary: ArmSummary) -> list[str]:
    score = "—" if summary.mean_points is None else f"{summary.mean_points:.2f} %"
    if summary.sd_points is not None:
        score += f" <small>sd {summary.sd_points:.2f}</small>"
    b = verdict.budget[arm]
    return [
        _arm(verdict, arm), score, f"{summary.runs}",
        "—" if summary.parameters is None else f"{summary.parameters:,}",
        "—" if summary.step_ms is None else f"{summary.step_ms:.2f}",
        f"{b.trials:,}", f"{b.steps:,}", "—" if verdict.mixed else f"{b.seconds:,.0f}",
        f"{b.failed}", f"{b.diverged}",
        f"{b.test_looks}",
    ]  # fmt: skip


def _arm(verdict: Verdict, arm: str) -> str:
    """An arm's name behind its mark, as in the pictures."""
    color, marker = arm_look(list(verdict.arms), arm)
    index = ARM_COLORS.index(color)
    return f'<span class="arm"><i style="color:var(--arm{index})">{SYMBOLS[marker]}</i>{escape(arm)}</span>'


def html_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)
) -> str:
    """Cells of `rows` are HTML already; the columns `words` hold text, the others figures."""
    kinds = [' class="text"' if i in words else "" for i in range(len(head))]
    top = "".join(f"<th{kind}>{escape(h)}</th>" for kind, h in zip(kinds, head, strict=True))
    lines = (
        "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _limits(verdict: Verdict) -> list[str]:
    if verdict.verdict == "not_asked":
        return [
            "The best score of a search is not an expected score: with protocol.export_seeds a study ends "
            "with re-runs of each arm's best point on fresh seeds."
        ]
    lines = [
        "The unit of evidence is a block: a fresh split, a small search of every arm, fresh confirm runs. "
        "Points are chosen on validation images only; test labels are read once per confirm run."
    ]
    if verdict.claim == "new_examples":
        lines.append(
            "The interval covers new blocks and new images of this kind, not other data sets."
        )
    if verdict.interim:
        lines.append(
            "Blocks are missing: only whole blocks count, and pictures of test scores wait."
        )
    return lines


def _provenance(study: Study, history: History, verdict: Verdict) -> str:
    declared = history.declared or {}
    versions = ", ".join(f"{k} {v}" for k, v in sorted(declared.get("versions", {}).items()))
    devices = sorted({t.result.device for t in history.rows() if t.result and t.result.device})
    ends = [t.finished for t in history.rows() if t.finished is not None]
    facts: list[tuple[str, Any]] = [
        ("study", f"{study.name} ({verdict.study_hash})"),
        ("backbone, data", f"{study.backbone.name}, {study.data.name}"),
        ("protocol", _plan_text(study, history)),
        ("data digest", declared.get("data_digest")),
        ("code", declared.get("code_hash")),
        ("test examples", verdict.test_examples),
        ("devices", ", ".join(devices)),
        ("slots", _slots(study, history)),
        ("versions", versions),
        ("declared", _utc(declared.get("time"))),
        ("last training ended", _utc(max(ends, default=None))),
    ]
    rows = (
        f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>"
        for k, v in facts
        if v not in (None, "")
    )
    return f'<dl class="facts">{"".join(rows)}</dl>'


def _slots(study: Study, history: History) -> str:
    """How many trained, and where it was few, why."""
    use = slot_use(study, history)
    return "" if use is None else slots_warning(study, use) or slots_line(use)


def _plan_text(study: Study, history: History) -> str:
    p = study.protocol
    if not study.protocol.blocks:
        more = f", {p.explore.finalists} finalists" if p.explore.finalists else ""
        return count(p.explore.trials, "explore trial") + more
    done = len(whole_blocks(study, history))
    planned = history.blocks or p.blocks
    ended = ""
    if history.stopped and blocks_to_run(study, history) < planned:
        by = "a planned look" if history.stopped["gate"].startswith("look") else "the budget"
        ended = f", ended by {by}"
    size = f"{count(p.twins, 'twin')} and {count(p.confirm, 'confirm pair')}"
    return f"{done} of {count(planned, 'block')} of {size}{ended}"


def _utc(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _study_text(study: Study) -> str:
    value = study.to_dict()
    for plugin in value["plugins"]:
        plugin.pop("source")
    return yaml_io.dump(value)


def _trainings_table(history: History) -> str:
    head = (
        "position", "arm", "status", "validation", "test", "steps", "seconds", "device", "point",
    )  # fmt: skip
    return html_table(head, [_training_row(t) for t in history.rows()], (0, 1, 2, 7, 8))


def _training_row(t: Training) -> list[str]:
    result = t.result
    detail = (
        f' <small title="{escape(result.detail)}">?</small>' if result and result.detail else ""
    )
    status = "reused" if t.reused_from else t.status
    return [
        escape(t.position), escape(t.arm), escape(status) + detail, _percent(t.score),
        _percent(t.test_accuracy), f"{result.steps:,}" if result else "",
        f"{result.seconds:.1f}" if result else "", escape(", then ".join(t.devices)),
        escape(_point_text(t.point.shared, t.point.addon)),
    ]  # fmt: skip


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.2f} %"


def _point_text(*parts: Mapping[str, Any]) -> str:
    return " ".join(
        f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}"
        for part in parts
        for k, v in part.items()
    )


def whole_page(title: str, body: str) -> str:
    """The file: head with colors for light and dark, then `body`."""
    light = "".join(f"--arm{i}:{c};" for i, c in enumerate(ARM_COLORS))
    dark = "".join(f"--arm{i}:{c};" for i, c in enumerate(DARK_ARMS))
    style = CSS.replace("/*light arms*/", light).replace("/*dark arms*/", dark)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)} · aim_tune</title><style>{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )
