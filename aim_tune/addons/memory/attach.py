"""`attach` latches a memory on to a network; `detach` takes it off again. Needs only torch.

Conv2d and Linear layers become reading subclasses of the SAME parameters (a new `mem_weight` beside
them); hooks sit only at update points and around the whole forward pass. The baseline's state_dict
loads unchanged, and with zero init the network computes exactly what it did before. The network is
changed in place, after everything has been checked. Not for nn.DataParallel (one memory per thread) or
activation checkpointing (layers run outside the forward pass: AttachError).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aim_tune.addons.dry_run import dry_run, training_run
from aim_tune.addons.memory.bank import ConvBank, MemoryBank
from aim_tune.addons.memory.plan import Plan, Update, make_plan
from aim_tune.addons.memory.readable import Reader
from aim_tune.addons.memory.readers import READERS, as_plain, as_reader
from aim_tune.addons.memory.report import AttachReport
from aim_tune.addons.memory.settings import (
    ARMS,
    Arm,
    check_arm,
    check_checkpointing,
    check_conv,
    checked,
)
from aim_tune.addons.memory.updates import PublishedUpdateBlock, UpdateBlock
from aim_tune.errors import AttachError

BANK = "memory_bank"
"""Name under which a network holds its memory and update blocks: state_dict keys `memory_bank.*`."""


def attach(
    model: nn.Module,
    *,
    memory_shape: Sequence[int],
    example_input: Tensor,
    update_width: int = 16,
    kernel_size: int = 3,
    activation: str = "sigmoid",
    write: str = "sample",
    readers: str | Sequence[str] = "block",
    init: str = "zero",
    arm: str = "aim",
    seed: int = 0,
    layout: str = "aligned",
    pool: str = "first",
    rule: str = "overwrite",
    carry: str = "weights",
    origin: str = "free",
    update_at: str = "last",
    update_every: int | None = None,
    second_memory: bool = False,
    measured: bool = True,
) -> tuple[nn.Module, AttachReport]:
    """`model` itself, now with a memory, and a report of what was done.

    memory_shape   rows, columns, channels; a dense network reads the numbers as one vector
    example_input  a batch [B, ...] of the kind the network takes; only shape and type matter
    update_width   channels inside an update block; kernel_size its (odd) kernels, 1 in dense networks
    write          none: never rewritten; sample: each image its own; batch: the mean over the batch
                   in training, its running mean in evaluation
    readers        block: the first readable layer of each block; all: every readable layer; or names of
                   layers, as in `named_modules`
    init           of the reads: zero (starts as the baseline, exactly) or normal
    arm            aim, or a control: a name in ARMS; the table of add-ons says what each is
    seed           of memory, reads and update blocks; the global generator is left as it was
    layout         aligned: numbers stay where they belong; raster: the published reshape
    pool           first: updates run at the size of the memory; last: as published, at the features'
    rule           overwrite: an update gives the new memory; residual: what is added to the old one
    carry          what persists between batches: the weights alone, or also a running mean of what
                   the last update wrote (ema; moves in training only)
    origin         free: the memory's numbers are parameters; conv: as published, a 1x1 convolution on ones
    update_at      after the last or, as published, the first block of each resolution
    update_every   blocks between two updates; None: an update at the end of each resolution or, where
                   it never changes (dense and token networks), after each quarter of the blocks
    second_memory  as published: later blocks of a resolution read another memory, never written
    measured       whether the report says what the memory costs in FLOPs and bytes, which takes two
                   more passes on meta tensors

    Raises AttachError, with `model` unchanged, where a setting is impossible for this network.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> net, report = attach(net, memory_shape=(4, 4, 8), example_input=torch.zeros(1, 3, 16, 16))
    >>> report.readers, report.update_points
    (('0', '2'), ('1',))
    """
    settings = {
        "activation": activation,
        "write": write,
        "init": init,
        "arm": arm,
        "layout": layout,
        "pool": pool,
        "rule": rule,
        "carry": carry,
        "origin": origin,
        "update_at": update_at,
    }
    if isinstance(readers, str):
        settings["readers"] = readers
    if hasattr(model, BANK):
        raise AttachError("this network has a memory already; detach it first.")
    shape = checked(memory_shape, update_width, kernel_size, update_every, settings)
    kind = ARMS[arm]
    if origin == "conv":
        check_conv(arm, carry)
    write = write if kind.rewritten else "none"
    layout = kind.layout or layout
    before, training = dry_run(model, example_input), training_run(model, example_input)
    plan = make_plan(
        model,
        before,
        shape,
        readers=readers,
        write=write,
        layout=layout,
        update_at=update_at,
        update_every=update_every,
        second_memory=second_memory and origin == "conv",
    )
    check_arm(arm, plan, write, rule, carry)
    check_checkpointing(plan, before, training)
    parameters = _parameters(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        bank = _bank(plan, kind, layout, origin, carry=carry == "ema" and write != "none")
        reads = [_read_weight(model.get_submodule(r.name), r, init) for r in plan.readers]
        for update in plan.updates:
            bank.updates.append(
                _update_block(
                    update,
                    pool,
                    cell=bank.cell,
                    memory_KRC=bank.start().detach()[0],
                    width=update_width,
                    kernel_size=1 if plan.dense else kernel_size,
                    activation=activation,
                    shared=write == "batch",
                    residual=rule == "residual",
                    shuffled=kind.shuffled,
                )
            )
    _install(model, bank, plan.readers, reads, plan.updates)
    after, trained = None, None
    if measured:
        after, trained = dry_run(model, example_input), training_run(model, example_input)
    report = AttachReport(
        arm=arm,
        write=write,
        plan=plan,
        parameters=(parameters, _parameters(model)),
        flops=None if after is None else (before.flops, after.flops),
        saved_bytes=(training.saved_bytes, trained.saved_bytes) if training and trained else None,
    )
    return model, report


def detach(model: nn.Module) -> nn.Module:
    """`model` itself without its memory, with the weights it has now; AttachError if it has none."""
    bank = memory_of(model)
    for module in model.modules():
        if type(module) in READERS.values():
            as_plain(module)
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if _ours(hook, bank)]:
                del hooks[key]
    delattr(model, BANK)
    return model


def baseline_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict without what the memory added: loads into the network before `attach`."""
    memory_of(model)
    return {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith(f"{BANK}.") and key.rpartition(".")[2] != "mem_weight"
    }


def _bank(plan: Plan, kind: Arm, layout: str, origin: str, *, carry: bool) -> MemoryBank:
    """Memory drawn from a standard normal: reads get gradients of the features' size from the start."""
    rows, columns, channels = plan.memory_shape
    if origin == "free":
        cells = (1, 1) if kind.layout else (rows, columns)
        memory = torch.randn(channels, *cells)
        return MemoryBank(
            memory, learned=kind.learned, layout=layout, noise=kind.noise, carry=carry
        )
    second = any(r.second for r in plan.readers)
    bank = ConvBank(torch.empty(channels, rows, columns), layout=layout, second=second)
    if not kind.learned:  # Keras' layer with `trainable = False`
        for parameter in bank.parameters():
            parameter.requires_grad_(False)
    return bank


def _update_block(update: Update, pool: str, **settings: Any) -> UpdateBlock:
    own = {
        "features": update.features,
        "layout": update.layout,
        "late_change": update.late_change,
        **settings,
    }
    if pool == "last":
        return PublishedUpdateBlock(buckets=update.buckets, **own)
    return UpdateBlock(**own)


def _read_weight(layer: nn.Module, reader: Reader, init: str) -> Tensor:
    """Weights [out, buckets, ...] of a read, on the CPU."""
    out, _, *kernel = layer.weight.shape  # type: ignore[union-attr,misc]
    shape = (out, reader.buckets, *kernel)
    if init == "zero":
        return torch.zeros(shape)
    fan_in = (reader.channels + reader.buckets) * torch.Size(kernel).numel()
    return torch.randn(shape) * (2 / fan_in) ** 0.5


def _install(
    model: nn.Module,
    bank: MemoryBank,
    readers: Sequence[Reader],
    reads: Sequence[Tensor],
    updates: Sequence[Update],
) -> None:
    """Change the network: the only place that does."""
    layers = [model.get_submodule(r.name) for r in readers]
    weight: Tensor = layers[0].weight  # type: ignore[assignment]
    bank.to(device=weight.device, dtype=weight.dtype).train(model.training)
    for reader, layer, read in zip(readers, layers, reads, strict=True):
        own: Tensor = layer.weight  # type: ignore[assignment]
        cell = bank.second_cell if isinstance(bank, ConvBank) and reader.second else bank.cell
        as_reader(layer, cell=cell, mem_weight=read.to(device=own.device, dtype=own.dtype))
    for update, block in zip(updates, bank.updates, strict=True):
        assert isinstance(block, UpdateBlock)
        model.get_submodule(update.name).register_forward_hook(block.rewrite)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.register_forward_pre_hook(_by_modules)
    model.add_module(BANK, bank)
    model.register_forward_pre_hook(bank.begin)
    model.register_forward_hook(bank.end)


def memory_of(model: nn.Module) -> MemoryBank:
    """The memory of a network; AttachError if it has none."""
    bank = getattr(model, BANK, None)
    if not isinstance(bank, MemoryBank):
        raise AttachError("this network has no memory attached.")
    return bank


def _by_modules(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Does nothing. A hook keeps nn.TransformerEncoderLayer from its fast path for evaluation, which uses
    the weights of its layers without running them: they would not read."""


def _ours(hook: Any, bank: MemoryBank) -> bool:
    return hook is _by_modules or getattr(hook, "__self__", None) in (bank, *bank.updates)


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
