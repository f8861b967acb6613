"""What happens inside a network in one forward pass: which modules ran, in what order, on which shapes.

Runs on meta tensors (no arithmetic, weights and buffers untouched); a network that cannot, because
its control flow depends on values, runs once for real in eval mode without gradients. Nothing is kept
of the network's data. Auxiliary heads that eval mode skips are not seen. A training run tells what
is kept for the backward pass and what activation checkpointing would run again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from aim_tune.errors import AttachError

BATCH = 3
"""Images in the dry run: a number that is unlikely to be another dimension."""
TRAINING_BATCH = 32
"""Images in the training run: what a batch shares is counted once for all of them."""


@dataclass(kw_only=True)
class Call:
    """One run of one module."""

    start: int
    """Order among all starts and ends of modules."""
    end: int = -1
    input_shape: tuple[int, ...] = ()
    """Of the first argument; empty if it is not a tensor."""
    output_shape: tuple[int, ...] = ()
    """Empty if it is not a tensor."""
    late_change: bool = False
    """Whether the output was changed in place after the module had ended."""
    checkpointed: bool = False
    """Whether it ran inside activation checkpointing, which runs it again during backward."""


@dataclass(kw_only=True)
class Trace:
    """All runs of all modules in one forward pass."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    """Name -> its runs; names of modules that did not run are missing."""
    flops: int = 0
    """Of the whole pass, per image."""
    saved_bytes: int = 0
    """Kept for the backward pass, per image, weights not counted; of a training run only."""
    clock: int = 0

    def once(self, name: str) -> Call | None:
        """The only run of a module; None if it ran never or more than once."""
        calls = self.calls.get(name, [])
        return calls[0] if len(calls) == 1 else None


def dry_run(model: nn.Module, example_input: Tensor) -> Trace:
    """The trace of `model` on BATCH images like those of `example_input` [B, ...].

    Raises AttachError if the network does not run on such an input.
    """
    shape = (BATCH, *example_input.shape[1:])
    with _mode(model, training=False):
        try:
            return _record(model, _on_meta(model, shape, example_input.dtype))
        except Exception:
            return _for_real(model, example_input[:1].expand(shape))


def training_run(model: nn.Module, example_input: Tensor) -> Trace | None:
    """The trace of a forward pass in training mode, ready for backward, on TRAINING_BATCH meta images.

    None where the network does not run on meta tensors in training.
    """
    trace, shape = Trace(), (TRAINING_BATCH, *example_input.shape[1:])
    with _mode(model, training=True), torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            run = _on_meta(model, shape, example_input.dtype)
            with _watching(model, trace), _counting_saved(trace, run.weights):
                run()
        except Exception:
            return None
    return trace


def count_flops(model: nn.Module, image_shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Forward FLOPs of one image in eval mode (two per multiply-add), without touching the model."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return dry_run(model, torch.zeros(1, *image_shape, dtype=dtype, device=device)).flops


@dataclass(frozen=True)
class _OnMeta:
    """A forward pass on meta tensors in place of weights, buffers and input."""

    model: nn.Module
    weights: dict[str, Tensor]
    inputs: Tensor

    def __call__(self) -> Any:
        return functional_call(self.model, self.weights, (self.inputs,))


def _on_meta(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> _OnMeta:
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    meta = {
        name: torch.empty_like(w, device="meta").requires_grad_(w.requires_grad)
        for name, w in weights.items()
    }
    return _OnMeta(model, meta, torch.empty(shape, dtype=dtype, device="meta"))


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or eval mode for a while; afterwards each module has its own again."""
    modes = {m: m.training for m in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _counting_saved(trace: Trace, weights: dict[str, Tensor]) -> Iterator[None]:
    """Adds up what autograd keeps, each piece of memory once."""
    kept: dict[int, Tensor] = {}  # alive until the end, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield
    own = {w.untyped_storage()._cdata for w in weights.values()}
    sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in own]
    trace.saved_bytes = sum(sizes) // TRAINING_BATCH


def _in_checkpoint() -> bool:
    """Whether a caller is torch's activation checkpointing, under whatever name it was imported."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _for_real(model: nn.Module, inputs: Tensor) -> Trace:
    try:
        with torch.random.fork_rng():
            return _record(model, lambda: model(inputs))
    except Exception as error:
        raise AttachError(
            f"the network does not run on an input of shape {list(inputs.shape)}: {error} "
            "Give an input that it takes, or another network."
        ) from error


def _record(model: nn.Module, run: Callable[[], Any]) -> Trace:
    trace = Trace()
    with torch.no_grad(), _watching(model, trace), FlopCounterMode(display=False) as counter:
        run()
    trace.flops = counter.get_total_flops() // BATCH
    return trace


@contextmanager
def _watching(model: nn.Module, trace: Trace) -> Iterator[None]:
    """Hooks on every module while the dry run lasts."""
    open_calls: dict[str, list[Call]] = {}
    outputs: list[tuple[Call, Tensor, int]] = []  # with the number of in-place changes so far

    def started(name: str, args: tuple[Any, ...]) -> None:
        shape = _shape(args[0] if args else None)
        call = Call(start=trace.clock, input_shape=shape, checkpointed=_in_checkpoint())
        trace.clock += 1
        open_calls.setdefault(name, []).append(call)
        trace.calls.setdefault(name, []).append(call)

    def ended(name: str, output: Any) -> None:
        call = open_calls[name].pop()
        call.end, call.output_shape = trace.clock, _shape(output)
        trace.clock += 1
        if isinstance(output, Tensor):
            outputs.append((call, output, output._version))

    handles = []
    for name, module in model.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda m, args, name=name: started(name, args)),
            module.register_forward_hook(lambda m, args, out, name=name: ended(name, out)),
        ]
    try:
        yield
        for call, output, version in outputs:
            call.late_change = output._version != version
    finally:
        for handle in handles:
            handle.remove()


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()
