"""What a study has shown, as values: one Comparison per pair of arms, one Verdict. Known to verdict.json.

Figures are in points (percent of the test examples). `stats.verdict` makes them, `reporting.words` puts them
in words, docs/reading_a_verdict.md says what every key means. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aim_tune.spec.study import BASELINE
from aim_tune.stats.budget import Budget
from aim_tune.stats.devices import DeviceTimes
from aim_tune.stats.edges import Edge
from aim_tune.stats.explored import Explored
from aim_tune.stats.paired import ALPHA, Interval
from aim_tune.stats.tuning import Gap

VERDICTS = ("better", "worse", "equivalent", "no_evidence", "withheld", "not_asked")
OUTCOMES = ("attributed", "does_as_well", "undecided", "pending")
"""Attribution against another arm: the primary arm beats it; it does as well (or better); not known; it is
trained only now that the primary arm is better."""


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
    """Median over confirm runs of the median step time, on the type of device that most trainings ran
    on; None: the arm has none there."""


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
    devices: Mapping[str, DeviceTimes] = field(default_factory=dict)
    """Type of device -> its trainings and what a step took there (over confirm runs), the type that most
    trainings ran on first. Times are never compared across types."""
    moved: int = 0
    """Trainings that a fault moved to another type: part of their time is of each."""
    matched_on: str | None = None
    """Type on which match/0 has measured the step times that matched arms are made from."""
    twins: int = 0
    """Tuning budget: trials per arm and block."""
    sampler: str = "random"
    """How they were proposed: random or tpe."""
    search_fraction: float = 1.0
    """Share of a whole training's steps that each of those trials had."""
    rope_points: float = 0.0
    alpha: float = ALPHA
    """Level of this look: 0.05, less where several were planned (all together then err in 0.05)."""
    looks: tuple[int, ...] = ()
    """Planned looks, in blocks; none: judged once, at the end."""
    look: int | None = None
    """At which of the planned looks (from 1) the study was judged; None: at none of them."""
    explored: Explored | None = None
    """What explore came to; None without one."""
    out_of_budget: bool = False
    """Whether the declared device hours ended the study before the planned number of blocks."""
    design_for: tuple[str, ...] = ()
    """The arms for which alone explore chose the add-on's design; none named: for all that have one."""
    declared_confounds: Mapping[str, str] = field(default_factory=dict)
    """In what the arms differ beside the add-on, as the study declares -> how."""
    untrained: tuple[str, ...] = ()
    """Arms that are trained only after a "better", and are not (yet)."""
    blocks_to_decide: int | None = None
    """After no_evidence at the end of the plan: blocks in all that would find a difference as large as
    the ROPE in 80 % of studies; None: not asked, or more than MOST_BLOCKS."""
    reach_points: float | None = None
    """Where that is out of reach: the true difference that MOST_BLOCKS blocks would find."""
    reach_limit: str | None = None
    """And what stands in the way then: blocks (their spread), or examples (too few test examples)."""
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
    def timed_on(self) -> str:
        """The type of device that single times are of: the one that most trainings ran on."""
        return next(iter(self.devices), "")

    @property
    def mixed(self) -> bool:
        """Whether trainings ran on several types, so that totals of seconds compare no arms."""
        return len(self.devices) > 1 or self.moved > 0

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
        own["explored"] = Explored.from_dict(own["explored"]) if own.get("explored") else None
        for key in set(own) & {"devices"}:
            own[key] = {k: DeviceTimes.from_dict(v) for k, v in own[key].items()}
        own["edges"] = tuple(Edge(**e) for e in own.get("edges", ()))
        return cls(**_tuples(own))


def _plain(value: Any) -> Any:
    """`value` as JSON gives it back."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
