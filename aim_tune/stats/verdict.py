"""Decides: a study and its history in, one Verdict out. No words for people here, see reporting.words.

First that holds: withheld (budgets unequal, or too many confirm pairs lost), better / worse (crossed
95 % interval beyond 0, confirmed by sign-flip from 8 blocks; else the block interval, then only for
this test set), equivalent (90 % interval inside the ROPE), no_evidence. Plain search: not_asked.
While blocks are missing, or were added without a plan, intervals are anytime-valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import isfinite
from typing import Any

import numpy as np

from aim_tune.ledger import History, Training
from aim_tune.spec.study import BASELINE, Study
from aim_tune.stats.budget import Budget, budgets, inequality
from aim_tune.stats.edges import Edge, edges
from aim_tune.stats.evidence import Differences, differences, twin_scores, whole_blocks
from aim_tune.stats.paired import (
    ALPHA,
    Interval,
    Sample,
    blocks_to_detect,
    holm,
    p_better_in_new_block,
    sign_flip_p,
)
from aim_tune.stats.tuning import Gap, correlation, tuning_gap

VERDICTS = ("better", "worse", "equivalent", "no_evidence", "withheld", "not_asked")
OUTCOMES = ("attributed", "does_as_well", "undecided")
"""Attribution against another arm: the primary arm beats it; it does as well (or better); not known."""

SIGN_FLIP_FROM = 8
"""Blocks from which the exact sign-flip p must agree; below it the test cannot decide."""
LOST_SHARE = 0.1
"""Largest share of confirm pairs that may be lost: survivors of an arm that often fails are not a sample."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One arm minus another over the confirm pairs of whole blocks. Figures in points."""

    arm: str
    reference: str
    effect_points: float | None = None
    ci95_points: Interval | None = None
    """Covers blocks and test examples; simultaneous (Holm) if `adjusted`. None: no interval."""
    ci90_points: Interval | None = None
    """The same at 90 %: what equivalence is judged by."""
    ci95_block_points: Interval | None = None
    """Covers blocks on this test set only; not adjusted."""
    p_value: float | None = None
    """Of the crossed interval; Holm-adjusted if `adjusted`."""
    sign_flip_p: float | None = None
    """Exact, over blocks; not adjusted."""
    adjusted: bool = False
    """The primary comparison is not adjusted, all others are (Holm)."""
    differences_points: tuple[float, ...] = ()
    """One per block."""
    wins: int = 0
    """Blocks in which the arm is above the reference."""
    ties: int = 0
    p_better_new_block: float | None = None
    mde_points: float | None = None
    """Smallest true effect this comparison finds with 80 % power."""
    lost_pairs: int = 0
    """Confirm pairs without a score of both arms."""
    covers_examples: bool = True
    """Whether the intervals also cover the sampling of test examples (needs correctness per example)."""

    @property
    def blocks(self) -> int:
        """Blocks that count."""
        return len(self.differences_points)


@dataclass(frozen=True, kw_only=True)
class ArmSummary:
    """Test accuracy of an arm's confirm runs, points."""

    mean_points: float | None
    sd_points: float | None
    """Between confirm runs; None below two."""
    runs: int
    parameters: int | None
    """Of the last confirm run."""
    step_ms: float | None
    """Median over confirm runs of the median step time."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a study has shown so far."""

    verdict: str
    """See VERDICTS."""
    arm: str | None = None
    """The arm the study asks about."""
    reference: str = BASELINE
    clearly: bool = False
    """Better or worse by more than the ROPE."""
    small: bool = False
    """Better or worse, but within the ROPE: below the size declared to matter."""
    tests_disagree: bool = False
    """The interval excludes 0, sign-flip does not confirm it."""
    reason: str = ""
    """Why the verdict is withheld."""
    effect_points: float | None = None
    ci95_points: Interval | None = None
    """The interval of the claim: crossed for new_examples, over blocks for this_test_set."""
    ci90_points: Interval | None = None
    blocks: int = 0
    """Whole blocks that count."""
    blocks_planned: int = 0
    mde_points: float | None = None
    p_better_new_block: float | None = None
    sign_flip_p: float | None = None
    wins: int = 0
    attribution: Mapping[str, str] = field(default_factory=dict)
    """Other arm -> see OUTCOMES; without the reference."""
    metric: str = "test_accuracy"
    unit: str = "points"
    higher_is_better: bool = True
    claim: str = "new_examples"
    """new_examples: holds for new images of this kind; this_test_set: only for these."""
    interim: bool = False
    """Whether planned blocks are still missing."""
    extended: bool = False
    """Whether blocks were added after the plan."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """"aim - baseline" -> comparison; the primary one first."""
    arms: Mapping[str, ArmSummary] = field(default_factory=dict)
    budget: Mapping[str, Budget] = field(default_factory=dict)
    """Compare and confirm; all trainings where no comparison was asked."""
    explore_budget: Mapping[str, Budget] = field(default_factory=dict)
    twins: int = 0
    """Tuning budget: random draws per arm and block."""
    rope_points: float = 0.0
    blocks_to_decide: int | None = None
    """After no_evidence at the end of the plan: blocks in all that would find a difference as large as
    the ROPE in 80 % of studies; None: not asked, or no number up to 1,000."""
    gap: Gap | None = None
    """Expected-best gap at half and at the whole tuning budget."""
    twin_correlation: float | None = None
    """Achieved by pairing: validation accuracy of both arms over all twins."""
    block_correlation: float | None = None
    """The same for test accuracy over blocks."""
    edges: tuple[Edge, ...] = ()
    """Arms whose chosen settings sit at an end of a searched range: they may not be tuned."""
    test_examples: int | None = None
    study_number: int | None = None
    """How many studies have used this test data, this one included; None: not counted."""
    study: str = ""
    study_hash: str = ""

    @property
    def anytime(self) -> bool:
        """Whether the intervals are anytime-valid."""
        return self.interim or self.extended

    @property
    def primary(self) -> Comparison | None:
        """The comparison the verdict is about."""
        return self.comparisons.get(f"{self.arm} - {self.reference}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form; `from_dict` inverts it."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Verdict:
        """Inverse of `to_dict`; keys it does not know are left out."""
        known = {f.name for f in fields(cls)}
        own = {k: v for k, v in value.items() if k in known}
        own["comparisons"] = {k: Comparison(**_tuples(v)) for k, v in own["comparisons"].items()}
        own["arms"] = {k: ArmSummary(**v) for k, v in own["arms"].items()}
        for key in ("budget", "explore_budget"):
            own[key] = {k: Budget(**v) for k, v in own[key].items()}
        own["gap"] = Gap(**_tuples(own["gap"])) if own["gap"] else None
        own["edges"] = tuple(Edge(**e) for e in own.get("edges", ()))
        return cls(**_tuples(own))


def decide(
    study: Study, history: History, *, primary: str | None = None, study_number: int | None = None
) -> Verdict:
    """The verdict on the whole blocks of `history`.

    `primary` is the arm asked about (default: aim if the study has it, else its first add-on arm).
    Every history has a verdict: nothing finished gives no_evidence with interim set. Without
    `study_number` the one of the verdict that the ledger holds is kept.
    """
    study_number = study_number or (history.verdict or {}).get("study_number")
    if not study.compares:
        return _not_asked(study, history, study_number)
    arm = primary or ("aim" if "aim" in study.addon_arms else study.addon_arms[0])
    blocks = whole_blocks(study, history)
    base = _facts(study, history, blocks, arm, study_number)
    comparisons = _comparisons(history, blocks, study.arms, arm, anytime=base.anytime)
    base = replace(base, comparisons=comparisons)
    main = next(iter(comparisons.values()))
    judged = _judge(base, main, _withheld(base, main, study))
    judged = replace(judged, blocks_to_decide=_blocks_to_decide(judged, history, blocks))
    others = [c for c in comparisons.values() if c.arm == arm and c.reference != BASELINE]
    outcomes = {c.reference: _outcome(c, study.protocol.rope_points) for c in others}
    return replace(judged, attribution=outcomes)


def _not_asked(study: Study, history: History, study_number: int | None) -> Verdict:
    rows = [t for t in history.rows() if t.done]
    return Verdict(
        verdict="not_asked",
        interim=len(history.done) < study.requests_planned,
        blocks=len(whole_blocks(study, history)),
        blocks_planned=study.protocol.blocks,
        arms={arm: _summary([t for t in rows if t.arm == arm]) for arm in study.arms},
        budget=budgets(history, rows, study.arms),
        twins=study.protocol.twins,
        rope_points=study.protocol.rope_points,
        study_number=study_number,
        study=study.name,
        study_hash=_hash(study, history),
    )


def _facts(
    study: Study, history: History, blocks: tuple[int, ...], arm: str, study_number: int | None
) -> Verdict:
    """Everything but the judgment."""
    planned = history.blocks or study.protocol.blocks
    rows = [t for t in history.rows() if t.block in blocks and t.stage != "explore"]
    scores = twin_scores(history, blocks, arm, BASELINE)
    known = ~np.isnan(scores).any(axis=0)
    return Verdict(
        verdict="no_evidence",
        arm=arm,
        blocks=len(blocks),
        blocks_planned=planned,
        interim=len(blocks) < planned,
        extended=history.blocks is not None,
        arms={a: _summary([t for t in rows if t.arm == a]) for a in study.arms},
        budget=budgets(history, rows, study.arms),
        explore_budget=budgets(history, [t for t in history.rows("explore") if t.done], study.arms),
        twins=study.protocol.twins,
        rope_points=study.protocol.rope_points,
        gap=tuning_gap(scores[0], scores[1]),
        twin_correlation=_figure(correlation(scores[0][known], scores[1][known])),
        block_correlation=_block_correlation(history, blocks, arm),
        edges=edges(study, history, blocks),
        test_examples=history.looks[-1]["examples"] if history.looks else None,
        study_number=study_number,
        study=study.name,
        study_hash=_hash(study, history),
    )


def _hash(study: Study, history: History) -> str:
    """The declared study's: adding blocks does not make it another question."""
    return str((history.declared or {}).get("study_hash", study.study_hash))


def _summary(rows: Sequence[Training]) -> ArmSummary:
    confirm = [t for t in rows if t.stage == "confirm"]
    scores = [100 * t.test_accuracy for t in confirm if t.test_accuracy is not None]
    results = [t.result for t in (confirm or rows) if t.result is not None]
    times = [r.step_ms for r in results if r.step_ms is not None]
    return ArmSummary(
        mean_points=_figure(np.mean(scores)) if scores else None,
        sd_points=_figure(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        runs=len(scores),
        parameters=results[-1].parameters or None if results else None,
        step_ms=_figure(np.median(times)) if times else None,
    )


def _block_correlation(history: History, blocks: tuple[int, ...], arm: str) -> float | None:
    def level(block: int, name: str) -> float:
        scores = [
            t.test_accuracy
            for t in history.rows("confirm", name)
            if t.block == block and t.test_accuracy is not None
        ]
        return float(np.mean(scores)) if scores else np.nan

    levels = np.array([[level(b, name) for b in blocks] for name in (arm, BASELINE)])
    known = ~np.isnan(levels).any(axis=0)
    return _figure(correlation(levels[0][known], levels[1][known]))


def _comparisons(
    history: History, blocks: tuple[int, ...], arms: Sequence[str], arm: str, *, anytime: bool
) -> dict[str, Comparison]:
    """arm - baseline unadjusted, then (Holm) arm - others and others - baseline."""
    others = [a for a in arms if a not in (arm, BASELINE)]
    pairs = [(arm, BASELINE), *((arm, o) for o in others), *((o, BASELINE) for o in others)]
    found = [differences(history, blocks, a, b) for a, b in pairs]
    samples = [Sample(differences=f.points_B, cells=f.cells_BN, anytime=anytime) for f in found]
    p_values = [s.p() if s.size else 1.0 for s in samples]
    adjusted, levels = holm(p_values[1:])
    rows = zip(pairs, found, samples, p_values[:1] + adjusted, [ALPHA, *levels], strict=True)
    return {
        f"{pair[0]} - {pair[1]}": _comparison(
            pair, seen, sample, p, level, adjusted=pair != pairs[0]
        )
        for pair, seen, sample, p, level in rows
    }


def _comparison(
    pair: tuple[str, str],
    seen: Differences,
    sample: Sample,
    p: float,
    level: float,
    *,
    adjusted: bool,
) -> Comparison:
    base = Comparison(
        arm=pair[0],
        reference=pair[1],
        adjusted=adjusted,
        lost_pairs=seen.lost,
        covers_examples=sample.cells is not None,
    )
    if sample.size == 0:
        return base
    points = sample.differences
    return replace(
        base,
        effect_points=_figure(sample.mean),
        ci95_points=_interval(sample.interval(level)),
        ci90_points=_interval(sample.interval(2 * level)),
        ci95_block_points=_interval(sample.interval(crossed=False)),
        p_value=_figure(p),
        sign_flip_p=_figure(sign_flip_p(points)),
        differences_points=tuple(float(f"{d:.6g}") for d in points),
        wins=int(np.sum(points > 0)),
        ties=int(np.sum(points == 0)),
        p_better_new_block=_figure(p_better_in_new_block(points)),
        mde_points=_figure(sample.detectable(level)),
    )


def _withheld(base: Verdict, main: Comparison, study: Study) -> str:
    """Why no verdict may be given; empty: it may."""
    unequal = inequality(dict(base.budget))
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
    agree = main.blocks < SIGN_FLIP_FROM or (main.sign_flip_p or 0.0) < ALPHA
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


def _blocks_to_decide(judged: Verdict, history: History, blocks: tuple[int, ...]) -> int | None:
    if judged.verdict != "no_evidence" or judged.interim:
        return None
    seen = differences(history, blocks, str(judged.arm), judged.reference)
    sample = Sample(differences=seen.points_B, cells=seen.cells_BN)
    return blocks_to_detect(sample, judged.rope_points)


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


def _figure(value: Any) -> float | None:
    """Six significant digits; None for what is not finite."""
    return float(f"{value:.6g}") if value is not None and isfinite(value) else None


def _interval(interval: Interval | None) -> Interval | None:
    return None if interval is None else (float(f"{interval[0]:.6g}"), float(f"{interval[1]:.6g}"))


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
