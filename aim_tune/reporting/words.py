"""A verdict in words: one sentence, its notes, one line per comparison. The only place that words it.

The wording is the protocol's, so that a reader may rely on it: "clearly", "on this test set", "below the
size you declared to matter", "attributed to what the memory learned". Every case has a hand-made test.
"""

from __future__ import annotations

from typing import Any

from aim_tune.reporting.words_explore import explore_notes
from aim_tune.stats.paired import MOST_BLOCKS, Interval
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


def notes(verdict: Verdict) -> list[str]:
    """What must be said beside the verdict: tuning budget, pairing, looks, limits."""
    if verdict.verdict == "not_asked":
        return [*explore_notes(verdict), *_counted(verdict)]
    return [
        *_edges(verdict),
        _tuning(verdict),
        *_design(verdict),
        *explore_notes(verdict),
        *_untrained(verdict),
        *_pairing(verdict),
        *_budget_used(verdict),
        *_looks(verdict),
        *_sign_flip(verdict),
        *_ended_early(verdict),
        *_lost(verdict),
        *_uncovered(verdict),
        *_more_blocks(verdict),
        *_extended(verdict),
        *_counted(verdict),
    ]


def document(verdict: Verdict) -> dict[str, Any]:
    """What verdict.json holds: every figure, and the words. `Verdict.from_dict` reads it."""
    return {**verdict.to_dict(), "sentence": sentence(verdict), "notes": notes(verdict)}


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


def _tuning(verdict: Verdict) -> str:
    short = verdict.search_fraction
    text = f"Every arm was tuned with n = {count(verdict.twins, 'trial')} per block"
    text += " proposed by TPE" if verdict.sampler == "tpe" else ""
    text += f", each {100 * short:g} % of a whole training" if short < 1 else ""
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
        f"{edge.median:.3g}, the range ends at {edge.limit:.4g}"
        f"{', where explore has cut it' if edge.narrowed else ''}): its best may lie beyond. "
        f"{'Search without narrow' if edge.narrowed else 'Widen the range'} before believing the "
        "difference."
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


def _diverged(verdict: Verdict) -> list[str]:
    counts = _counts(verdict, "diverged")
    return [f"Diverged trainings, scored as they ended: {counts}."] if counts else []


def _ended_early(verdict: Verdict) -> list[str]:
    """Early ends and failures, counted apart from the budget that was granted."""
    early, failed = _counts(verdict, "early"), _counts(verdict, "failed")
    lines = [f"Ended by the time limit, scored as they stood: {early}."] if early else []
    return lines + ([f"Failed or out of memory, without a score: {failed}."] if failed else [])


def _counts(verdict: Verdict, what: str) -> str:
    """ "baseline 1, aim 3": the arms that have any."""
    found = {arm: getattr(b, what) for arm, b in verdict.budget.items()}
    return ", ".join(f"{arm} {number}" for arm, number in found.items() if number)


def _confounds(verdict: Verdict) -> list[str]:
    found = [f"{k} ({how})" if how else k for k, how in verdict.declared_confounds.items()]
    return (
        [f"Declared confounds, in which the arms differ too: {'; '.join(found)}."] if found else []
    )


def _design(verdict: Verdict) -> list[str]:
    if not verdict.design_for:
        return []
    arms = " and ".join(verdict.design_for)
    return [
        f"The add-on's design was chosen for {arms} alone, which favors it over other arms with the add-on."
    ]


def _untrained(verdict: Verdict) -> list[str]:
    if not verdict.untrained or "pending" in verdict.attribution.values():
        return []
    arms, are = " and ".join(verdict.untrained), "are" if len(verdict.untrained) > 1 else "is"
    return [f"{arms} {are} trained only after {verdict.arm} was found better: no attribution."]


def _budget_used(verdict: Verdict) -> list[str]:
    if not verdict.out_of_budget:
        return []
    return [
        f"Ended after {verdict.blocks} of {count(verdict.blocks_planned, 'block')}: the declared device "
        "hours allow no more."
    ]


def _looks(verdict: Verdict) -> list[str]:
    if not verdict.looks or verdict.extended:
        return []
    *some, last = (str(size) for size in verdict.looks)
    planned = f"{', '.join(some)} and {last}" if some else last
    if verdict.look is None:
        return [
            f"Looks are planned at {planned} blocks; between them the interval is anytime-valid."
        ]
    return [
        f"Look {verdict.look} of those planned at {planned} blocks: each is judged at "
        f"{100 * verdict.alpha:.1f} %, so that all together err in 5 %."
    ]


def _lost(verdict: Verdict) -> list[str]:
    lost = verdict.primary.lost_pairs if verdict.primary else 0
    if not lost:
        return []
    what = "pair has" if lost == 1 else "pairs have"
    return [
        f"{lost} confirm {what} no score of both arms and {'is' if lost == 1 else 'are'} left out."
    ]


def _uncovered(verdict: Verdict) -> list[str]:
    if not verdict.blocks or verdict.primary is None or verdict.primary.covers_examples:
        return []
    return ["Correctness per example is not recorded: the interval covers this test set only."]


def _extended(verdict: Verdict) -> list[str]:
    text = "Blocks were added after the plan: the interval is anytime-valid."
    return [text] if verdict.extended else []


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
    """After an open end: how much more would decide, or what would help where blocks do not."""
    size = f"a true difference of {verdict.rope_points:g} points"
    if verdict.blocks_to_decide is not None:
        more = count(verdict.blocks_to_decide - verdict.blocks, "block")
        return [f"About {more} more would find {size} in 80 % of studies: {_way_on(verdict)}."]
    if verdict.reach_points is None:
        return []
    help_ = {
        "examples": "more test examples: those there are differ too much between the arms",
        "blocks": "more confirm pairs or twins per block, or a recipe that varies less between seeds",
    }[str(verdict.reach_limit)]
    return [
        f"{size[0].upper()}{size[1:]} is out of reach of more blocks: {MOST_BLOCKS} in all would find "
        f"{verdict.reach_points:.2f} points or more. What would help: {help_}."
    ]


def _way_on(verdict: Verdict) -> str:
    """How blocks are added: to the same study, unless its end was part of the plan."""
    if verdict.looks or verdict.out_of_budget:
        what = "its last planned look" if verdict.looks else "its budget"
        return f"a study ends with {what}, so they take a new one (--fork)"
    return f"run the same command again with --set protocol.blocks={verdict.blocks_to_decide}"


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
