"""Small words: signed numbers, intervals, counted things. Knows no verdict but for its figures per arm."""

from __future__ import annotations

from aim_tune.stats.paired import Interval
from aim_tune.stats.verdict import Verdict


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


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number}{ending}"


def per_arm(verdict: Verdict, what: str) -> str:
    """ "baseline 1, aim 3": the arms that have any."""
    found = {arm: getattr(b, what) for arm, b in verdict.budget.items()}
    return ", ".join(f"{arm} {number}" for arm, number in found.items() if number)
