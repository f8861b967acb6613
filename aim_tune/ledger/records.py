"""What the ledger speaks of: events, a validation pass, a result, a training. Plain values, no file.

    event              fields besides `event` and `time` (seconds since 1970)
    declared           study (dict), study_hash, code_hash, code (file -> hash), data_digest, versions, node,
                       earlier (only after a warm start: all that came over, see protocol.earlier)
    resumed            node, pid            (the same command again)
    opened             slots                (a run begins that trains so many at a time)
    extended           blocks               (protocol.blocks grew)
    asked              position, request (dict), content_hash, reused_from (position or null)
    training_started   position, arm, attempt, node, device, pid, code (hash of the worker's own)
    epoch              position, arm, attempt, step, epoch, train_loss, val_loss, val_accuracy, lr, seconds
    training_done      position, arm, attempt, result (TrainingResult as dict)
    job_lost           position, arms, reason            (worker killed, node gone...)
    test_look          position, arms, examples          (written BEFORE the labels are used)
    request_done       position, test: {arm: {accuracy, correct}}    (test is {} except in confirm pairs)
    gate               gate (look/8, block/7, attribution/10), blocks, open, verdict, reason
    interrupted        reason
    verdict            verdict (dict, see stats.verdict)

Accuracies are fractions in [0, 1]; seconds are wall-clock; losses are means per example, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from aim_tune.spec.request import Point

EVENTS = (
    "declared", "resumed", "opened", "extended", "asked", "training_started", "epoch", "training_done",
    "job_lost", "test_look", "request_done", "gate", "interrupted", "verdict",
)  # fmt: skip
"""Every event there is; see the table above."""

STATUSES = ("ok", "pruned", "diverged", "oom", "timeout", "failed")
"""How a training ended. diverged: the loss became NaN or inf, the score reached is kept. pruned: stopped
early in explore, below its arm's ladder; the score reached is kept. oom: out of memory. timeout: time
limit. failed: an exception, or three lost attempts."""

FAILED = ("failed", "oom")
"""Statuses without a usable score."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One validation pass in a training."""

    step: int
    epoch: float
    train_loss: float
    """Mean over the steps since the pass before."""
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    """Training time so far, validation not counted."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Measure:
        """From an `epoch` record; null stands for a number that was NaN or inf."""
        known = {name: value[name] for name in _MEASURED}
        finite: dict[str, Any] = {k: math.nan if v is None else v for k, v in known.items()}
        return cls(**finite)


_MEASURED = tuple(f.name for f in fields(Measure))
"""Asked once: a ledger holds a hundred thousand of them."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How one training of one arm ended, as the worker reports it. No test score: workers have none."""

    arm: str
    status: str
    """See STATUSES."""
    detail: str = ""
    """Reason of anything but ok, for people."""
    steps: int = 0
    """Optimizer steps done."""
    allotted_steps: int = 0
    """Optimizer steps granted: what budgets are compared by."""
    val_accuracy: float | None = None
    """At the last validation pass: the score arms are compared by."""
    val_best: float | None = None
    seconds: float = 0.0
    """Wall-clock time in training steps; validation and start-up not counted."""
    step_ms: float | None = None
    """Median wall-clock time of a training step after warm-up, milliseconds."""
    peak_mib: float | None = None
    """Peak memory: of the GPU for this training, or None on a CPU."""
    cpu_percent: float | None = None
    """Processor time over wall-clock time: 100 is one core busy all the time."""
    rss_mib: float | None = None
    """Memory of the worker's process at the end."""
    gpu_percent: float | None = None
    """How busy the GPU was at the validation passes, on average; None on a CPU or where it is not told."""
    parameters: int = 0
    trainable: int = 0
    flops: int | None = None
    """Forward FLOPs per image (two per multiply-add)."""
    device: str = ""
    """Such as "cpu: AMD EPYC" or "cuda: NVIDIA H200"."""
    node: str = ""
    weights_sha256: str | None = None
    """Digest of the final state_dict."""
    predictions: str | None = None
    """Confirm pairs: class per sealed test example, see `pack_ints`."""
    memory: dict[str, Any] | None = None
    """First confirm run of the add-on: pictures of what it learned, see addons/pictures.py."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrainingResult:
        """Inverse of `to_dict`; fields that a later version added are left out."""
        return cls(**{name: value[name] for name in _TOLD if name in value})


_TOLD = tuple(f.name for f in fields(TrainingResult))


@dataclass(kw_only=True)
class Training:
    """One row of the tidy table: a training with all that is known of it so far."""

    position: str
    stage: str
    """explore, twin or confirm."""
    block: int | None
    index: int
    """Number within its stage (and block)."""
    arm: str
    point: Point
    streams: Mapping[str, int]
    status: str = "asked"
    """asked, running, or one of STATUSES."""
    attempts: int = 0
    """Number of the latest attempt."""
    spared: int = 0
    """Attempts ended by an interrupt (Ctrl-C): they do not count against the limit of attempts."""
    curve: list[Measure] = field(default_factory=list)
    """By step; a resumed training's passes are merged."""
    result: TrainingResult | None = None
    reused_from: str | None = None
    """Position whose result this one repeats (explore duplicates; not a training of its own)."""
    test_accuracy: float | None = None
    correct: str | None = None
    """Confirm pairs: one bit per sealed test example, see `unpack_bits`."""
    started: float | None = None
    begun: float | None = None
    """When the latest attempt began; `started` is the first."""
    spells: list[tuple[float, float]] = field(default_factory=list)
    """(begin, end) of each attempt that has ended, lost ones included."""
    node: str = ""
    """Where it runs or ran last."""
    devices: tuple[str, ...] = ()
    """Types of device that its attempts began on, each once."""
    finished: float | None = None

    @property
    def done(self) -> bool:
        """Whether the training has ended, well or not."""
        return self.result is not None

    @property
    def device(self) -> str:
        """Type of device that all its attempts ran on; "" where they differ or nobody knows: its times are
        those of no type."""
        own = {*self.devices, self.result.device if self.result else ""} - {""}
        return own.pop() if len(own) == 1 else ""

    @property
    def failed(self) -> bool:
        """Whether it ended without a usable result: an exception, lost attempts, out of memory."""
        return self.status in FAILED

    @property
    def score(self) -> float | None:
        """Validation accuracy at the read point; None before the end and for a failed run. A diverged
        or timed-out run keeps what it reached."""
        return self.result.val_accuracy if self.result and not self.failed else None
