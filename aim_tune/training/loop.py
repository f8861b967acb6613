"""ONE training loop for every arm; it never knows which arm it trains.

With a `Group`, the same loop runs in several processes, one a device, and every decision is the same in
all: losses are averaged over them, scores and the clock are rank 0's.
All randomness is a function of (stream, epoch) or (stream, step), so a checkpoint holds only network,
optimizer, step and scores, and a resumed training gives the same bits on a CPU. A training that cannot
go on (NaN, time, memory) ends with a status and the network it had at its last validation pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.data.source import Source, Split
from aim_tune.ledger import Measure
from aim_tune.spec.request import Ladder
from aim_tune.spec.study import Recipe
from aim_tune.spec.values import derive_seed, short_hash
from aim_tune.training.batches import Batches, augment
from aim_tune.training.checkpoints import CheckpointSlot
from aim_tune.training.evaluate import (
    memory_format,
    precision,
    predict_test,
    validate,
    weights_sha256,
)
from aim_tune.training.group import ALONE, Group, RankFailed
from aim_tune.training.optimizers import make_optimizer
from aim_tune.training.schedules import (
    evaluation_steps,
    learning_rate,
    passes_without_gain,
    total_steps,
)

__all__ = ["Outcome", "fit", "predict_test", "total_steps", "weights_sha256"]

COMPILER: dict[str, Any] = {"fallback_random": True, "layout_optimization": False}
"""Dropout draws what it draws uncompiled; layouts stay those of the recipe (on a CPU torch 2.15 would make
convolutions of few channels channels_last, whose gradients oneDNN then writes beyond their memory)."""
GPU_STEPS_PER_LOOK = 20  # reading a loss waits for the GPU; a CPU looks after every step
WARM_UP_LOOKS = 5  # not counted in step_ms: caches, kernel choice


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended; see `ledger.TrainingResult` for the fields of the same name."""

    status: str
    """ok, diverged, oom, timeout or pruned."""
    detail: str
    steps: int
    allotted_steps: int
    val_accuracy: float | None
    val_best: float | None
    seconds: float
    step_ms: float | None
    peak_mib: float | None


def fit(
    model: nn.Module,
    source: Source,
    *,
    split: Split,
    recipe: Recipe,
    streams: Mapping[str, int],
    device: torch.device,
    on_measure: Callable[[Measure], None],
    slot: CheckpointSlot | None = None,
    time_limit_s: float | None = None,
    checkpoint_s: float = 60.0,
    stop: Ladder = (),
    group: Group = ALONE,
) -> Outcome:
    """Train the network in place and say how it ended.

    `on_measure` gets every validation pass; after a resume, those before it once more. With a `slot`
    the training saves at most every `checkpoint_s` seconds and starts where the slot left off.
    Streams used: order, augment, dropout. The global random state is left as it was. A training that
    is below a rung of `stop` ends there as pruned; its last pass ends it anyway and is no rung. With
    `recipe.early_stopping_patience` it ends after that many passes without a gain, and the network keeps
    the weights of its best pass (the first of equal ones): the score is theirs.
    With a `group` this process is one rank of several; all call `fit` alike, those beside rank 0 without a
    slot. Exceptions other than out-of-memory propagate, in rank 0 those of another rank, too.
    """
    model.to(device=device, memory_format=memory_format(recipe))  # type: ignore[call-overload]
    forget_compiled(recipe)
    with _random_state_kept(device):
        run = _Run(
            model=model, source=source, split=split, recipe=recipe, streams=streams, device=device,
            on_measure=on_measure, slot=slot, time_limit_s=time_limit_s, checkpoint_s=checkpoint_s,
            rungs=dict(stop), group=group,
        )  # fmt: skip
        try:
            run.resume()
            run.train()
            run.take_best()
        except _Stop as stop:
            run.end_early(stop.status, stop.detail)
        except Exception as error:
            cause = group.cause(error)
            if not _is_out_of_memory(cause) or group.rank > 0:
                raise cause from cause.__cause__
            group.give_up()
            run.end_early("oom", _first_line(cause))
        return run.outcome()


class _Stop(Exception):
    """The training cannot go on."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(kw_only=True)
class _Run:
    """The state of one training."""

    model: nn.Module
    source: Source
    split: Split
    recipe: Recipe
    streams: Mapping[str, int]
    device: torch.device
    on_measure: Callable[[Measure], None]
    slot: CheckpointSlot | None
    time_limit_s: float | None
    checkpoint_s: float
    rungs: Mapping[int, float]
    """Number of a validation pass -> least accuracy to go on."""
    group: Group

    step: int = 0
    seconds: float = 0.0
    """In training steps, over all attempts."""
    elapsed: float = 0.0
    """Wall-clock time of earlier attempts, validation included."""
    loss_sum: float = 0.0
    """Since the last validation pass, with `loss_count`."""
    loss_count: int = 0
    measures: list[Measure] = field(default_factory=list)
    status: str = "ok"
    details: list[str] = field(default_factory=list)
    pending: list[Tensor] = field(default_factory=list)
    """Losses not looked at yet."""
    step_times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patience = self.recipe.early_stopping_patience
        self.total = total_steps(self.recipe, len(self.split.train))
        self.marks = set(evaluation_steps(self.total, self.recipe.evaluations))
        call = compiled(self.model) if self.recipe.compile else self.model
        self.call = self.group.call(self.model, call)
        """What a training step calls."""
        self.part = self.group.part
        self.compiles = self.recipe.compile
        """Whether the coming step compiles: it is looked at alone and its time is not counted."""
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.look_every = GPU_STEPS_PER_LOOK if self.device.type == "cuda" else 1
        self.started = self.saved = self.looked = time.perf_counter()
        self.kept = _copied(self.model)
        """Weights at the last (with patience: best) validation pass: what the reported score belongs to."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    # --- the loop -----------------------------------------------------------------------------

    def train(self) -> None:
        """All remaining steps, with validation passes, checkpoints and limits in between."""
        batches = Batches(
            self.split.train, batch_size=self.recipe.batch_size, order=self.streams["order"],
            start=self.step, total=self.total, part=self.part,
        )  # fmt: skip
        self.model.train()
        self.looked = time.perf_counter()
        for images, labels in self.source.pool_batches(batches, self.device):
            self.pending.append(self.one_step(images, labels))
            self.step += 1
            if self.compiles or len(self.pending) >= self.look_every or self.step in self.marks:
                self.look()
                if self.step in self.marks:
                    self.measure()
                self.pause()

    def one_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One optimizer step; the mean loss over the batch, before the step."""
        self.optimizer.param_groups[0]["lr"] = self.rate()
        own = [self.part.rank] if self.part.rank else []
        _seed_all(derive_seed(self.streams["dropout"], self.step, *own), self.device)
        if self.recipe.augment:
            images = augment(
                images,
                self.recipe.augment,
                stream=self.streams["augment"],
                step=self.step,
                part=self.part,
            )
        with precision(self.recipe, self.device):
            logits = self.call(images.contiguous(memory_format=memory_format(self.recipe)))
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.grad_clip)
        self.optimizer.step()
        return loss.detach()

    def rate(self) -> float:
        """Learning rate of the coming step."""
        accuracies = [m.val_accuracy for m in self.measures]
        return learning_rate(self.recipe, self.step, self.total, accuracies)

    def look(self) -> None:
        """Read the losses of the last steps, take the time; raises _Stop where one is not finite."""
        losses = self.group.mean(torch.stack(self.pending))  # waits for the device
        now = time.perf_counter()
        if not self.compiles:
            self.step_times.append((now - self.looked) / len(losses))
            self.seconds += now - self.looked
        self.looked, self.compiles = now, False
        first = self.step - len(losses) + 1
        self.pending.clear()
        for number, loss in enumerate(losses):
            if not math.isfinite(loss):
                raise _Stop("diverged", f"the training loss became {loss} at step {first + number}")
        self.loss_sum += sum(losses)
        self.loss_count += len(losses)

    def measure(self) -> None:
        """One validation pass, kept and reported."""
        last_rate = self.optimizer.param_groups[0]["lr"]
        val_loss, val_accuracy = self.validate()
        if not math.isfinite(val_loss):
            raise _Stop("diverged", f"the validation loss became {val_loss} at step {self.step}")
        measure = Measure(
            step=self.step,
            epoch=self.step * self.recipe.batch_size / len(self.split.train),
            train_loss=self.loss_sum / self.loss_count,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=last_rate,
            seconds=self.seconds,
        )
        self.loss_sum, self.loss_count = 0.0, 0
        self.measures.append(measure)
        if self.patience is None or self.best is measure:
            self.kept = _copied(self.model)
        self.on_measure(measure)
        self.climb(val_accuracy)
        self.wait()

    def climb(self, val_accuracy: float) -> None:
        """Raise _Stop where this pass is a rung and the score too low for it."""
        least = self.rungs.get(len(self.measures), 0.0)
        if val_accuracy < least and self.step < self.total:
            text = f"validation accuracy {val_accuracy:.4f} at step {self.step}, {least:.4f} was needed"
            raise _Stop("pruned", text)

    @property
    def best(self) -> Measure | None:
        """The pass with the highest validation accuracy, the first of equal ones."""
        return max(self.measures, key=lambda m: m.val_accuracy, default=None)

    def wait(self) -> None:
        """Raise _Stop where patience is over."""
        best = self.best
        if self.patience is None or best is None or self.step >= self.total:
            return
        accuracies = [m.val_accuracy for m in self.measures]
        waited = passes_without_gain(accuracies, self.recipe.early_stopping_min_delta)
        if waited >= self.patience:
            raise _Stop(
                "ok",
                f"ended at step {self.step}: {waited} passes without a gain; {self.kept_words()}",
            )

    def take_best(self) -> None:
        """With patience, the weights of the best pass; they need not be the last ones."""
        if self.patience is not None and self.best is not self.measures[-1]:
            self.model.load_state_dict(self.kept)
            self.details.append(self.kept_words())

    def kept_words(self) -> str:
        """Which weights are kept."""
        best = self.best
        return (
            f"weights of step {best.step if best else 0}, the best of {len(self.measures)} passes"
        )

    def validate(self) -> tuple[float, float]:
        """(loss, accuracy) on the validation images; leaves the network in training mode.

        In a group it is rank 0's alone: of the network that is kept, in the batches of one device.
        """

        def alone() -> tuple[float, float]:
            return validate(
                self.model, self.source, self.split.val, recipe=self.recipe, device=self.device
            )

        result: tuple[float, float] = self.group.first(alone)
        self.model.train()
        return result

    def pause(self) -> None:
        """Save if it is time to; stop if time is over. Time spent here is not training time."""
        now = time.perf_counter()
        limit = self.time_limit_s
        if self.slot and self.step < self.total and now - self.saved >= self.checkpoint_s:
            self.slot.save(self.step, self.state())
            self.saved = time.perf_counter()
        if limit is not None and self.step < self.total and self.is_over(now, limit):
            raise _Stop("timeout", f"time limit of {limit:g} s reached at step {self.step}")
        self.looked = time.perf_counter()

    def is_over(self, now: float, limit: float) -> bool:
        """Whether time is over, by the clock of rank 0."""
        return bool(self.group.first(lambda: self.wall(now) > limit))

    def wall(self, now: float) -> float:
        """Wall-clock seconds since the start, earlier attempts included."""
        return self.elapsed + now - self.started

    # --- checkpoints --------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a later attempt needs, in plain types."""
        return {
            "asked": self.asked(),
            "step": self.step,
            "seconds": self.seconds,
            "elapsed": self.wall(time.perf_counter()),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "measures": [asdict(m) for m in self.measures],
            "model": self.model.state_dict(),
            "kept": self.kept,
            "optimizer": self.optimizer.state_dict(),
        }

    def asked(self) -> str:
        """Identity of what is trained: a checkpoint of anything else is not used."""
        shapes = {name: list(t.shape) for name, t in self.model.state_dict().items()}
        asked = [asdict(self.recipe), dict(self.streams), len(self.split.train), self.total, shapes]
        return short_hash([*asked, self.part.size] if self.part.size > 1 else asked)

    def resume(self) -> None:
        """Take up what the slot left off, if it fits; earlier validation passes are reported again."""
        state = self.group.first(self.load)
        if self.slot:
            self.details += self.slot.faults
        if state is None:
            return
        if state["asked"] != self.asked():
            self.details.append("a checkpoint of another training was found and not used")
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.kept = state["kept"]
        self.step, self.seconds, self.elapsed = state["step"], state["seconds"], state["elapsed"]
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        self.measures = [Measure(**m) for m in state["measures"]]
        self.details.append(f"resumed at step {self.step}")
        for measure in self.measures:
            self.on_measure(measure)

    def load(self) -> dict[str, Any] | None:
        """What the slot has."""
        return self.slot.load() if self.slot else None

    # --- the end ------------------------------------------------------------------------------

    def end_early(self, status: str, detail: str) -> None:
        """Go back to the weights of the last validation pass (or of the start): the score is theirs."""
        self.status = status
        self.details.insert(0, detail)
        self.pending.clear()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(self.kept)

    def outcome(self) -> Outcome:
        """The summary. A training that diverged before its first pass has its untrained score."""
        scores = [m.val_accuracy for m in self.measures]
        if not scores and self.status == "diverged":
            scores = [self.validate()[1]]
        gpu = self.device.type == "cuda"
        counted = self.step_times[WARM_UP_LOOKS:] or self.step_times
        return Outcome(
            status=self.status,
            detail="; ".join(self.details),
            steps=self.step,
            allotted_steps=self.total,
            val_accuracy=self.score(scores),
            val_best=max(scores, default=None),
            seconds=self.seconds,
            step_ms=1000.0 * median(counted) if counted else None,
            peak_mib=torch.cuda.max_memory_allocated(self.device) / 2**20 if gpu else None,
        )

    def score(self, scores: list[float]) -> float | None:
        """The accuracy of the weights that are kept."""
        if not scores:
            return None
        return scores[-1] if self.patience is None else max(scores)


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A compiled call of the network, which itself stays as it is: its weights, their names, its other uses.

    Dynamo keeps what it compiled with the code of a function, up to 8 times, then goes on uncompiled
    without a word. So each network gets a function with code of its own.
    """

    def call(images: Tensor) -> Tensor:
        return model(images)

    call.__code__ = call.__code__.replace()
    return torch.compile(call, dynamic=False, options=COMPILER)


def forget_compiled(recipe: Recipe) -> None:
    """Drop what earlier trainings of this process compiled: else a reused worker keeps their networks alive,
    and what it saw of their sizes decides how the next one is compiled."""
    if recipe.compile:
        torch.compiler.reset()


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


@contextmanager
def _random_state_kept(device: torch.device) -> Iterator[None]:
    """Put torch's global random state back at the end: dropout draws from it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_all(seed: int, device: torch.device) -> None:
    """Seed torch's global generators that this training uses (torch.manual_seed seeds every backend)."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, RankFailed):
        return error.status == "oom"
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "out of memory"
