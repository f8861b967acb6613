"""A verdict in words: one sentence, its notes, one line per comparison. The only place that words it.

The wording is the protocol's, so that a reader may rely on it: "clearly", "on this test set", "below the
size you declared to matter", "attributed to what the memory learned". Every case has a hand-made test.
"""

from __future__ import annotations

from aim_tune.stats.paired import Interval
from aim_tune.stats.verdict import SIGN_FLIP_FROM, Comparison, Verdict

LABELS = {
    "better": "Better",
    "worse": "Worse",
    "equivalent": "Equivalent",
    "no_evidence": "No evidence",
    "withheld": "Withheld",
    "not_asked": "Not asked",
}
"""Verdict -> a label for badges and tables."""


def sentence(verdict: Verdict) -> str:
    """The verdict in one sentence (two where runs diverged), with interval, size and attribution."""
    text = _lead(verdict) + _body(verdict)
    if verdict.verdict in ("withheld", "not_asked"):
        return text
    diverged = {arm: b.diverged for arm, b in verdict.budget.items() if b.diverged}
    counts = ", ".join(f"{arm} {count}" for arm, count in diverged.items())
    return f"{text} Diverged trainings, scored as they ended: {counts}." if diverged else text


def notes(verdict: Verdict) -> list[str]:
    """What must be said beside the verdict: tuning budget, pairing, looks, limits."""
    if verdict.verdict == "not_asked":
        return _counted(verdict)
    lines = [*_edges(verdict), _tuning(verdict), *_pairing(verdict), *_sign_flip(verdict)]
    main = verdict.primary
    if main is not None and main.lost_pairs:
        one = main.lost_pairs == 1
        what = (
            "pair has no score of both arms and is"
            if one
            else "pairs have no score of both arms and are"
        )
        lines.append(f"{main.lost_pairs} confirm {what} left out.")
    if verdict.blocks and main is not None and not main.covers_examples:
        lines.append(
            "Correctness per example is not recorded: the interval covers this test set only."
        )
    lines += _more_blocks(verdict)
    if verdict.extended:
        lines.append("Blocks were added after the plan: the interval is anytime-valid.")
    return lines + _counted(verdict)


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


def signed(points: float | None, digits: int = 2) -> str:
    """+1.32, −0.40 or 0.00; an em dash for None."""
    if points is None:
        return "—"
    text = f"{abs(points):.{digits}f}"
    if float(text) == 0:
        return text
    return ("−" if points < 0 else "+") + text


def span(interval: Interval | None) -> str:
    """+0.61 to +2.03."""
    return f"{signed(interval[0])} to {signed(interval[1])}" if interval else "unbounded"


def count(number: int, noun: str) -> str:
    """1 block, 6 blocks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


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
    comparison = verdict.comparisons[f"{verdict.arm} - {arm}"]
    placebo = arm == "frozen"
    if outcome == "attributed":
        return "attributed to what the memory learned" if placebo else f"more than {arm} gives"
    if outcome == "does_as_well":
        below = (comparison.effect_points or 0) < 0 and (comparison.ci95_points or (0, 0))[1] < 0
        other = "a frozen random memory" if placebo else arm
        return f"{other} does {'better' if below else 'as well'}"
    known = "" if comparison.mde_points is None else f" (MDE {comparison.mde_points:.2f} points)"
    return f"attribution undecided{known}" if placebo else f"against {arm} undecided{known}"


def _thing(verdict: Verdict) -> str:
    return "memory" if verdict.arm == "aim" else f"what {verdict.arm} adds"


def _tuning(verdict: Verdict) -> str:
    text = f"Every arm was tuned with n = {count(verdict.twins, 'trial')} per block"
    gap = verdict.gap
    if gap is None:
        return f"{text}; the expected-best gap needs at least 2 randomly drawn trials and 3 blocks."
    text += (
        f"; the expected-best validation gap is {signed(gap.points[0])} points at "
        f"{count(gap.trials[0], 'trial')} and {signed(gap.points[1])} at {gap.trials[1]}."
    )
    if not gap.closing:
        return text
    if verdict.verdict == "better":
        return f"{text} Better when tuned with {count(verdict.twins, 'trial')}; gap still closing."
    return f"{text} The gap is still closing."


def _edges(verdict: Verdict) -> list[str]:
    return [
        f"{edge.arm} keeps choosing {edge.setting} at the {edge.end} end of its range (median "
        f"{edge.median:.3g}, the range ends at {edge.limit:g}): its best may lie beyond. "
        "Widen the range before believing the difference."
        for edge in verdict.edges
    ]


def _pairing(verdict: Verdict) -> list[str]:
    parts = [
        f"{value:.2f} over {what}"
        for value, what in (
            (verdict.twin_correlation, "twins (validation)"),
            (verdict.block_correlation, "blocks (test)"),
        )
        if value is not None
    ]
    return (
        [f"Correlation of the two arms achieved by pairing: {', '.join(parts)}."] if parts else []
    )


def _sign_flip(verdict: Verdict) -> list[str]:
    if verdict.sign_flip_p is None or verdict.blocks < 2 or verdict.interim:
        return []
    weight = (
        ""
        if verdict.blocks >= SIGN_FLIP_FROM
        else f" (printed only: below {SIGN_FLIP_FROM} blocks it cannot decide)"
    )
    return [f"Exact sign-flip p = {verdict.sign_flip_p:.3g}{weight}."]


def _more_blocks(verdict: Verdict) -> list[str]:
    """After an open end: how much more would decide."""
    if verdict.verdict != "no_evidence" or verdict.interim or verdict.ci95_points is None:
        return []
    if not verdict.rope_points:
        return []
    size = f"a true difference of {verdict.rope_points:g} points"
    if verdict.blocks_to_decide is None:
        return [
            f"At this spread no number of blocks up to 1,000 would find {size}; more test examples would "
            "narrow the interval."
        ]
    more = count(verdict.blocks_to_decide - verdict.blocks, "block")
    return [
        f"About {more} more would find {size} in 80 % of studies: run the same command again with "
        f"--set protocol.blocks={verdict.blocks_to_decide}."
    ]


def _counted(verdict: Verdict) -> list[str]:
    if verdict.study_number is None:
        return []
    return [f"{ordinal(verdict.study_number)} study on this test data."]


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"
