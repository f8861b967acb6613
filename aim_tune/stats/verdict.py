"""Decides: a study and its history in, one Verdict out. No words for people here, see reporting.words.

First that holds: withheld (budgets unequal, or too many confirm pairs lost), better / worse (crossed
95 % interval beyond 0, confirmed by sign-flip from 8 blocks; else the block interval, then only for
this test set), equivalent (90 % interval inside the ROPE), no_evidence. Plain search: not_asked.
At planned looks the level is smaller; `looks` says when which interval counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from aim_tune.ledger import History, Training
from aim_tune.spec.study import BASELINE, MEASURED, Study
from aim_tune.stats.budget import budgets, inequality
from aim_tune.stats.compare import compare, figure
from aim_tune.stats.devices import DeviceTimes, device_times, measured_on, moved
from aim_tune.stats.edges import edges
from aim_tune.stats.evidence import trained_arms, twin_scores, whole_blocks
from aim_tune.stats.explored import explore_facts
from aim_tune.stats.looks import Look, looks_of
from aim_tune.stats.paired import Interval, Sample, reach
from aim_tune.stats.result import OUTCOMES, VERDICTS, ArmSummary, Comparison, Verdict
from aim_tune.stats.tuning import correlation, tuning_gap

__all__ = ["OUTCOMES", "VERDICTS", "ArmSummary", "Comparison", "Verdict", "decide"]

SIGN_FLIP_FROM = 8
"""Blocks from which the exact sign-flip p must agree; below it the test cannot decide."""
LOST_SHARE = 0.1
"""Largest share of confirm pairs that may be lost: survivors of an arm that often fails are not a sample."""


def decide(
    study: Study, history: History, *, primary: str | None = None, study_number: int | None = None
) -> Verdict:
    """The verdict on the whole blocks of `history`.

    `primary` is the arm asked about (default: aim if the study has it, else its first add-on arm).
    Every history has a verdict: nothing finished gives no_evidence with interim set. With planned looks
    it is that of the first look that decides; `interim` is False once no block is to follow. Without
    `study_number` the one of the verdict that the ledger holds is kept.
    """
    study_number = study_number or (history.verdict or {}).get("study_number")
    if not study.compares:
        return _not_asked(study, history, study_number)
    arm = primary or study.primary
    assert arm is not None, "a study that compares has an arm beside the baseline"
    for look in looks_of(study, history, whole_blocks(study, history)):
        verdict = _judge_at(study, history, arm, look)
        if _decides(verdict):
            break
    return replace(verdict, study_number=study_number)


def _decides(verdict: Verdict) -> bool:
    """Whether a planned look ends the study: with an answer, and not with one about this test set alone
    where more blocks could make it one about new examples."""
    main = verdict.primary
    narrow = verdict.claim == "this_test_set" and main is not None and main.covers_examples
    return verdict.verdict in ("better", "worse", "equivalent") and not narrow


def _judge_at(study: Study, history: History, arm: str, look: Look) -> Verdict:
    arms = trained_arms(study, history, look.blocks)
    base = _facts(study, history, look, arms, arm)
    comparisons, sample = compare(history, look, arms, arm)
    base = replace(base, comparisons=comparisons)
    main = next(iter(comparisons.values()))
    judged = _judge(base, main, _withheld(base, main, study))
    judged = _with_reach(judged, sample, last=look.last)
    return replace(judged, attribution=_attribution(judged))


def _attribution(judged: Verdict) -> dict[str, str]:
    """Other arm -> outcome; an arm that is trained after a "better" is pending until it is."""
    others = [c for c in judged.comparisons.values() if c.arm == judged.arm]
    outcomes = {
        c.reference: _outcome(c, judged.rope_points) for c in others if c.reference != BASELINE
    }
    pending = judged.untrained if judged.verdict == "better" else ()
    return {**outcomes, **dict.fromkeys(pending, "pending")}


def _not_asked(study: Study, history: History, study_number: int | None) -> Verdict:
    rows = [t for t in history.rows() if t.done]
    devices = _devices(rows)
    return Verdict(
        verdict="not_asked",
        interim=len(history.done) < study.requests_planned,
        blocks=len(whole_blocks(study, history)),
        blocks_planned=study.protocol.blocks,
        arms={arm: _summary([t for t in rows if t.arm == arm], devices) for arm in study.arms},
        budget=budgets(history, rows, study.arms),
        devices=devices,
        moved=moved(rows),
        explored=explore_facts(study, history),
        twins=study.protocol.twins,
        sampler="random" if study.protocol.draws_at_random else "tpe",
        search_fraction=study.protocol.search_fraction,
        rope_points=study.protocol.rope_points,
        declared_confounds=study.declared_confounds,
        study_number=study_number,
        study=study.name,
        study_hash=_hash(study, history),
    )


def _facts(study: Study, history: History, look: Look, arms: Sequence[str], arm: str) -> Verdict:
    """Everything but the judgment."""
    rows = [t for t in history.rows() if t.block in look.blocks and t.stage != "explore"]
    explored = [t for t in history.rows("explore") if t.done]
    scores = twin_scores(history, look.blocks, arm, BASELINE)
    known = ~np.isnan(scores).any(axis=0)
    devices = _devices(rows)
    return Verdict(
        verdict="no_evidence",
        arm=arm,
        blocks=len(look.blocks),
        blocks_planned=history.blocks or study.protocol.blocks,
        interim=look.interim,
        extended=history.blocks is not None,
        arms={a: _summary([t for t in rows if t.arm == a], devices) for a in arms},
        budget=budgets(history, rows, arms),
        devices=devices,
        moved=moved(rows),
        matched_on=measured_on(history),
        explore_budget=budgets(history, explored, study.arms),
        twins=study.protocol.twins,
        sampler="random" if study.protocol.draws_at_random else "tpe",
        search_fraction=study.protocol.search_fraction,
        rope_points=study.protocol.rope_points,
        alpha=look.alpha,
        looks=tuple(study.protocol.looks),
        look=look.number,
        out_of_budget=(history.stopped or {}).get("gate", "").startswith("block/"),
        explored=explore_facts(study, history),
        design_for=_design_for(study),
        declared_confounds=study.declared_confounds,
        untrained=tuple(a for a in study.arms if a not in arms),
        gap=tuning_gap(scores[0], scores[1]) if study.protocol.draws_at_random else None,
        twin_correlation=figure(correlation(scores[0][known], scores[1][known])),
        block_correlation=_block_correlation(history, look.blocks, arm),
        edges=edges(study, history, look.blocks),
        test_examples=history.looks[-1]["examples"] if history.looks else None,
        study=study.name,
        study_hash=_hash(study, history),
    )


def _hash(study: Study, history: History) -> str:
    """The declared study's: adding blocks does not make it another question."""
    return str((history.declared or {}).get("study_hash", study.study_hash))


def _design_for(study: Study) -> tuple[str, ...]:
    """The arms whose design explore chose, where it left others out that have one."""
    explore = study.protocol.explore
    asked = explore.arms or study.explore_arms
    able = [arm for arm in study.addon_arms if arm not in MEASURED]
    if not explore.trials or all(arm in asked for arm in able):
        return ()
    return tuple(arm for arm in able if arm in asked)


def _devices(rows: Sequence[Training]) -> dict[str, DeviceTimes]:
    own = [t for t in rows if t.reused_from is None]  # a repeated result was timed once
    return device_times(own, [t for t in own if t.stage == "confirm"] or own)


def _summary(rows: Sequence[Training], devices: Mapping[str, DeviceTimes]) -> ArmSummary:
    confirm = [t for t in rows if t.stage == "confirm"]
    scores = [100 * t.test_accuracy for t in confirm if t.test_accuracy is not None]
    results = [t.result for t in (confirm or rows) if t.result is not None]
    main = next(iter(devices.values()), None)
    return ArmSummary(
        mean_points=figure(np.mean(scores)) if scores else None,
        sd_points=figure(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        runs=len(scores),
        parameters=results[-1].parameters or None if results else None,
        step_ms=main.step_ms.get(rows[0].arm) if main and rows else None,
    )


def _block_correlation(history: History, blocks: tuple[int, ...], arm: str) -> float | None:
    def levels_of(name: str) -> list[float]:
        scores: dict[int | None, list[float]] = {}
        for t in history.rows("confirm", name):
            if t.test_accuracy is not None:
                scores.setdefault(t.block, []).append(t.test_accuracy)
        return [float(np.mean(scores.get(block, np.nan))) for block in blocks]

    levels = np.array([levels_of(name) for name in (arm, BASELINE)])
    known = ~np.isnan(levels).any(axis=0)
    return figure(correlation(levels[0][known], levels[1][known]))


def _withheld(base: Verdict, main: Comparison, study: Study) -> str:
    """Why no verdict may be given; empty: it may."""
    unequal = inequality(base.budget, study.declared_confounds)
    if unequal:
        return f"the arms' budgets were not equal ({unequal})"
    pairs = base.blocks * study.protocol.confirm
    if main.lost_pairs > LOST_SHARE * pairs:
        return f"{main.lost_pairs} of {pairs} confirm pairs have no score of both arms"
    return ""


def _judge(base: Verdict, main: Comparison, withheld: str) -> Verdict:
    """`base` with the verdict on its primary comparison."""
    widest = "new_examples" if main.covers_examples else "this_test_set"
    wide, local = main.ci95_points, main.ci95_block_points
    claim, interval = (
        (widest, wide) if _beyond(wide, 0) or not _beyond(local, 0) else ("this_test_set", local)
    )
    sign = _beyond(interval, 0)
    agree = main.blocks < SIGN_FLIP_FROM or (main.sign_flip_p or 0.0) < base.alpha
    inside = _inside(main.ci90_points, base.rope_points)
    if withheld:
        verdict = "withheld"
    elif sign and agree:
        verdict = "better" if sign > 0 else "worse"
    else:
        verdict, claim, interval = "equivalent" if inside else "no_evidence", widest, wide
    decided = verdict in ("better", "worse")
    return replace(
        base,
        verdict=verdict,
        reason=withheld,
        claim=claim,
        clearly=decided and _beyond(interval, base.rope_points) != 0,
        small=decided and inside,
        tests_disagree=bool(sign) and not agree and not withheld,
        effect_points=main.effect_points,
        ci95_points=interval,
        ci90_points=main.ci90_points,
        blocks=main.blocks,
        mde_points=main.mde_points,
        p_better_new_block=main.p_better_new_block,
        sign_flip_p=main.sign_flip_p,
        wins=main.wins,
    )


def _with_reach(judged: Verdict, sample: Sample, *, last: bool) -> Verdict:
    """`judged` with what more blocks could do, after an open end of the plan."""
    if judged.verdict != "no_evidence" or judged.interim or not last:
        return judged
    found = reach(sample, judged.rope_points)
    if found is None:
        return judged
    if found.blocks is not None:
        return replace(judged, blocks_to_decide=found.blocks)
    return replace(judged, reach_points=figure(found.points), reach_limit=found.limit)


def _outcome(comparison: Comparison, rope: float) -> str:
    if _beyond(comparison.ci95_points, 0.0) > 0:
        return "attributed"
    if _beyond(comparison.ci95_points, 0.0) < 0 or _inside(comparison.ci90_points, rope):
        return "does_as_well"
    return "undecided"


def _beyond(interval: Interval | None, limit: float) -> int:
    """1: the interval lies above +limit; -1: below -limit; 0: neither."""
    if interval is None:
        return 0
    return int(interval[0] > limit) - int(interval[1] < -limit)


def _inside(interval: Interval | None, rope: float) -> bool:
    return interval is not None and -rope <= interval[0] and interval[1] <= rope
