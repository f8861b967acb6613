"""What must be said beside a verdict, one function per subject; each is empty where there is nothing to say.

Wording is pinned by tests, as the sentence's is. What explore came to has a file of its own.
"""

from __future__ import annotations

from aim_tune.reporting.phrases import count, ordinal, per_arm, signed
from aim_tune.reporting.words_explore import explore_notes
from aim_tune.spec.study import MEASURED
from aim_tune.stats.paired import MOST_BLOCKS
from aim_tune.stats.verdict import SIGN_FLIP_FROM, Verdict


def notes(verdict: Verdict) -> list[str]:
    """What must be said beside the verdict: tuning budget, pairing, looks, limits."""
    if verdict.verdict == "not_asked":
        return [*explore_notes(verdict), *_devices(verdict), *_counted(verdict)]
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
        *_devices(verdict),
        *_matched(verdict),
        *_ended_early(verdict),
        *_lost(verdict),
        *_uncovered(verdict),
        *_more_blocks(verdict),
        *_extended(verdict),
        *_counted(verdict),
    ]


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


def _ended_early(verdict: Verdict) -> list[str]:
    """Early ends and failures, counted apart from the budget that was granted."""
    early, failed = per_arm(verdict, "early"), per_arm(verdict, "failed")
    lines = [f"Ended by the time limit, scored as they stood: {early}."] if early else []
    return lines + ([f"Failed or out of memory, without a score: {failed}."] if failed else [])


def _devices(verdict: Verdict) -> list[str]:
    """Where trainings ran on several types of device: which times are shown, and what the others say."""
    if not verdict.mixed:
        return []
    lines = []
    if len(verdict.devices) > 1:
        each = "; ".join(_on_one(verdict, device) for device in verdict.devices)
        lines.append(
            f"Trainings ran on {len(verdict.devices)} types of device, and times of different types are not "
            f"compared: {each}. Single times are those on {verdict.timed_on}; totals of seconds are not set "
            "side by side."
        )
    if verdict.moved:
        lines.append(
            f"{count(verdict.moved, 'training')} went on on another type of device after a fault: "
            "without a time."
        )
    return lines


def _on_one(verdict: Verdict, device: str) -> str:
    """A type with its trainings and how much longer a step of the arm takes there."""
    found = verdict.devices[device]
    ratio = found.step_ratio.get(verdict.arm or "")
    took = f"; a step of {verdict.arm} takes {ratio:.2f} times one of baseline" if ratio else ""
    return f"{device} ({count(found.trainings, 'training')}{took})"


def _matched(verdict: Verdict) -> list[str]:
    """What was measured on one type of device does not hold on another."""
    arms = [arm for arm in verdict.arms if arm in MEASURED]
    others = sum(d.trainings for name, d in verdict.devices.items() if name != verdict.matched_on)
    if not arms or verdict.matched_on is None or not others + verdict.moved:
        return []
    return [
        f"{' and '.join(arms)} cost{'s' * (len(arms) == 1)} what {verdict.arm} costs on "
        f"{verdict.matched_on}, where it was measured; "
        f"{count(others + verdict.moved, 'training')} of the arms ran elsewhere, where that need not hold."
    ]


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
    if not verdict.extended:
        return []
    return [
        "Blocks were added after the plan: the interval is anytime-valid, and judged at 1 %, as the plan's "
        "end has spent 5 %."
    ]


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
