"""A verdict in words: one sentence, its attribution, one line per comparison; `words_notes` has the notes.

The wording is the protocol's, so that a reader may rely on it: "clearly", "on this test set", "below the
size you declared to matter", "attributed to what the memory learned". Every case has a hand-made test.
"""

from __future__ import annotations

from typing import Any

from aim_tune.reporting.phrases import count, ordinal, per_arm, signed, span
from aim_tune.reporting.words_notes import notes
from aim_tune.stats.slots import SlotUse
from aim_tune.stats.verdict import Comparison, Verdict

__all__ = [
    "LABELS", "attribution", "comparison_line", "count", "document", "notes", "ordinal", "sentence",
    "signed", "span",
]  # fmt: skip

LABELS = {
    "better": "Better",
    "worse": "Worse",
    "equivalent": "Equivalent",
    "no_evidence": "No evidence",
    "withheld": "Withheld",
    "not_asked": "Not asked",
}
"""Verdict -> a label for badges and tables."""
OTHERS = {
    "frozen": (
        "attributed to what the memory learned",
        "a frozen random memory",
        "attribution undecided",
    ),
    "time_matched": (
        "better at equal training time too",
        "the baseline, trained for the same time,",
        "at equal training time undecided",
    ),
}
"""Arm -> what is said where the primary arm beats it, its name where it does as well, where neither is
known. Only time_matched supports a claim about equal seconds."""


def sentence(verdict: Verdict) -> str:
    """The verdict in one sentence, with interval, size and attribution; further ones say where runs
    diverged and in what the arms differ by declaration."""
    parts = [_lead(verdict) + _body(verdict)]
    if verdict.verdict not in ("withheld", "not_asked"):
        parts += _diverged(verdict)
    if verdict.verdict != "not_asked":
        parts += _confounds(verdict)
    return " ".join(parts)


def document(verdict: Verdict, use: SlotUse | None = None) -> dict[str, Any]:
    """What verdict.json holds: every figure, the words, and the use of the slots, which is no part of the
    verdict. `Verdict.from_dict` reads it."""
    words = {"sentence": sentence(verdict), "notes": notes(verdict)}
    return {**verdict.to_dict(), **words, "slot_use": use.to_dict() if use else None}


def attribution(verdict: Verdict) -> str:
    """Whether the gain comes from what was added, one clause per arm that can tell."""
    if not verdict.attribution:
        return f"not attributed to {_thing(verdict)}"
    clauses = [_clause(verdict, arm, outcome) for arm, outcome in verdict.attribution.items()]
    return "; ".join(clauses)


def comparison_line(comparison: Comparison) -> str:
    """One comparison: effect and interval.

    "aim − frozen: +0.31 points (95 % interval −0.40 to +1.02, Holm-adjusted)"
    """
    head = f"{comparison.arm} − {comparison.reference}"
    if comparison.effect_points is None:
        return f"{head}: no block finished"
    holm = ", Holm-adjusted" if comparison.adjusted else ""
    interval = (
        f"95 % interval {span(comparison.ci95_points)}{holm}"
        if comparison.ci95_points
        else "no interval"
    )
    return f"{head}: {signed(comparison.effect_points)} points ({interval})"


def _lead(verdict: Verdict) -> str:
    if not verdict.interim or verdict.verdict == "not_asked":
        return ""
    return f"Interim, {verdict.blocks} of {verdict.blocks_planned} blocks: "


def _body(verdict: Verdict) -> str:
    match verdict.verdict:
        case "withheld":
            return f"Verdict withheld: {verdict.reason}."
        case "not_asked":
            return _plain_search(verdict)
        case "better" | "worse":
            return _decided(verdict)
        case "equivalent":
            return _equivalent(verdict)
    return _open(verdict)


def _equivalent(verdict: Verdict) -> str:
    pair, rope = f"{verdict.arm} and {verdict.reference}", f"±{verdict.rope_points:g} points"
    here = " on this test set" if verdict.claim == "this_test_set" else ""
    return (
        f"{pair} are equivalent within {rope}{here}: {verdict.arm} − {verdict.reference} is "
        f"{signed(verdict.effect_points)} points (90 % interval {span(verdict.ci90_points)}; "
        f"{count(verdict.blocks, 'block')})."
    )


def _decided(verdict: Verdict) -> str:
    how = f"clearly {verdict.verdict}" if verdict.clearly else verdict.verdict
    here = " on this test set" if verdict.claim == "this_test_set" else ""
    small = ", but below the size you declared to matter" if verdict.small else ""
    if verdict.verdict == "better":
        known = attribution(verdict)
        after = f", {known}" if verdict.attribution else f" ({known})"
    else:
        after = ""
    return (
        f"{verdict.arm} is {how} than {verdict.reference}{here}{small}: "
        f"{signed(verdict.effect_points)} points of test accuracy {_known(verdict)}{after}."
    )


def _open(verdict: Verdict) -> str:
    if verdict.blocks == 0:
        return "No evidence: no whole block is finished."
    effect = f"{verdict.arm} − {verdict.reference} is {signed(verdict.effect_points)} points"
    if verdict.blocks == 1:
        return (
            f"No evidence: with one block this is configuration A against configuration B; {effect}. "
            "Judged by a single search, 12 to 28 % of studies without any true effect declare a winner."
        )
    head = "No evidence (tests disagree)" if verdict.tests_disagree else "No evidence either way"
    if verdict.ci95_points is None:
        kind = "anytime-valid interval" if verdict.anytime else "interval"
        return f"{head}: {effect}, and {count(verdict.blocks, 'block')} give no {kind}."
    could = ""
    if verdict.mde_points is not None:
        could = (
            f"; this study could have seen a difference of {verdict.mde_points:.2f} points or more"
        )
    return f"{head}: {effect} {_known(verdict)}{could}."


def _known(verdict: Verdict) -> str:
    """(95 % interval +0.61 to +2.03; 10 blocks)."""
    return f"(95 % interval {span(verdict.ci95_points)}; {count(verdict.blocks, 'block')})"


def _plain_search(verdict: Verdict) -> str:
    trials = ", ".join(f"{arm} {count(b.trials, 'training')}" for arm, b in verdict.budget.items())
    so_far = " so far" if verdict.interim else ""
    return f"No comparison was asked: plain search ({trials}{so_far})."


def _clause(verdict: Verdict, arm: str, outcome: str) -> str:
    if outcome == "pending":
        return f"attribution open until {arm} is trained"
    comparison = verdict.comparisons[f"{verdict.arm} - {arm}"]
    attributed, other, undecided = OTHERS.get(
        arm, (f"more than {arm} gives", arm, f"against {arm} undecided")
    )
    if outcome == "attributed":
        return attributed
    if outcome == "does_as_well":
        below = (comparison.effect_points or 0) < 0 and (comparison.ci95_points or (0, 0))[1] < 0
        return f"{other} does {'better' if below else 'as well'}"
    known = "" if comparison.mde_points is None else f" (MDE {comparison.mde_points:.2f} points)"
    return f"{undecided}{known}"


def _thing(verdict: Verdict) -> str:
    return "memory" if verdict.arm == "aim" else f"what {verdict.arm} adds"


def _diverged(verdict: Verdict) -> list[str]:
    counts = per_arm(verdict, "diverged")
    return [f"Diverged trainings, scored as they ended: {counts}."] if counts else []


def _confounds(verdict: Verdict) -> list[str]:
    found = [f"{k} ({how})" if how else k for k, how in verdict.declared_confounds.items()]
    return (
        [f"Declared confounds, in which the arms differ too: {'; '.join(found)}."] if found else []
    )
