"""A network with more hidden channels: controls that cost what an add-on costs, in parameters or in FLOPs.

Widened are the channels between two layers (Conv2d or Linear) with nothing between them but batch norm,
activations, dropout and pooling, in proportion to what they are: what a block gives to others keeps
its shape. The network's own weights stay; new channels start as noise on their way in and as zeros on
their way out, so that the network computes exactly what it did before, as the add-ons' reads do. Found
by symbolic tracing (torch.fx), which networks with data-dependent control flow do not allow.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from aim_tune.addons.dry_run import BATCH, Trace, dry_run
from aim_tune.errors import AttachError

TOLERANCE = 0.01
"""Largest accepted share by which the cost may differ from the target."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_PER_CHANNEL = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.LeakyReLU, nn.ELU,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
_FUNCTIONS = {F.relu, torch.relu, F.gelu, F.silu, torch.tanh, torch.sigmoid, F.dropout, F.max_pool2d,
              F.avg_pool2d, F.adaptive_avg_pool2d, operator.pos}  # fmt: skip
_METHODS = {"relu", "relu_", "tanh", "sigmoid", "contiguous"}


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Channels that one layer gives to one other only."""

    source: str
    norms: tuple[str, ...]
    target: str
    channels: int


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a network costs and what more channels add."""

    unit: str
    total: int
    """Of the network as it is."""
    weight: Mapping[str, int]
    """Layer -> cost of one of its weights."""
    other: int
    """Cost of one number of a bias or a batch norm."""


def widened(
    model: nn.Module,
    *,
    parameters: int | None = None,
    flops: int | None = None,
    example_input: Tensor | None = None,
) -> nn.Module:
    """`model` itself, widened to about `parameters` parameters or `flops` FLOPs (at most TOLERANCE away).

    Exactly one of the two is given; `flops` are those of one image of `example_input` [B, ...], forward.
    New weights come from torch's global generator. Raises AttachError where there is nothing to widen or
    the number cannot be met.
    """
    chains = hidden_chains(model)
    if not chains:
        raise AttachError(
            "a widened arm found no hidden channels to add to: no layer of this network feeds just one "
            "other layer. Leave this arm out."
        )
    if parameters is not None:
        price, target = parameter_price(model), parameters
    else:
        assert flops is not None, "parameters or flops"
        assert example_input is not None, "flops need an example_input"
        price, target = flop_price(model, example_input), flops
    more = _more(model, chains, price, target)
    count = _cost(model, chains, price, more)
    if abs(count - target) > TOLERANCE * target:
        raise AttachError(
            f"a widened arm cannot match {target:,} {price.unit}: the nearest is {count:,}. Use another "
            "memory_shape or update_width, or leave this arm out."
        )
    for chain, extra in zip(chains, more, strict=True):
        if extra:
            _widen(model, chain, extra)
    return model


def parameter_price(model: nn.Module) -> Price:
    """Every number is one parameter."""
    names = {name: 1 for name, module in model.named_modules() if _plain(module)}
    total = sum(p.numel() for p in model.parameters())
    return Price(unit="parameters", total=total, weight=names, other=1)


def flop_price(model: nn.Module, example_input: Tensor) -> Price:
    """A weight costs two FLOPs at each position of its layer's output; norms and biases are not counted."""
    trace = dry_run(model, example_input)
    plain = {name: module for name, module in model.named_modules() if _plain(module)}
    weight = {name: 2 * _positions(module, trace, name) for name, module in plain.items()}
    return Price(unit="FLOPs", total=trace.flops, weight=weight, other=0)


def _positions(module: nn.Module, trace: Trace, name: str) -> int:
    """Outputs per image and output channel of a layer, over all its runs."""
    channels = len(module.weight)  # type: ignore[arg-type]
    shapes = [call.output_shape for call in trace.calls.get(name, [])]
    return sum(torch.Size(shape).numel() // (BATCH * channels) for shape in shapes)


def hidden_chains(model: nn.Module) -> list[Chain]:
    """All channels that can be widened without changing what any other module sees."""
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise AttachError(
            f"a widened arm needs a network that torch.fx can trace: {error} Leave this arm out."
        ) from error
    modules = dict(model.named_modules())
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    once = {name: modules[name] for name, count in uses.items() if count == 1}
    layers = [n for n in graph.nodes if n.op == "call_module" and _plain(once.get(str(n.target)))]
    return [c for c in (_chain_from(node, once, modules) for node in layers) if c is not None]


def _chain_from(
    node: fx.Node, once: Mapping[str, nn.Module], modules: Mapping[str, nn.Module]
) -> Chain | None:
    """The channels that the layer at `node` gives to one other layer; `once` are the modules that run
    once, the only ones that may be changed."""
    source = str(node.target)
    norms: list[str] = []
    while len(node.users) == 1:
        (node,) = node.users
        name = str(node.target)
        if node.op == "call_module":
            module = once.get(name)
            if _plain(module) and type(module) is type(once[source]):
                channels = len(once[source].weight)  # type: ignore[arg-type]
                return Chain(source=source, norms=tuple(norms), target=name, channels=channels)
            if isinstance(module, _NORMS) and module.affine:
                norms.append(name)
            elif not isinstance(modules[name], _PER_CHANNEL):
                return None
        elif not (
            (node.op == "call_function" and node.target in _FUNCTIONS)
            or (node.op == "call_method" and name in _METHODS)
        ):
            return None
    return None


def _plain(module: nn.Module | None) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _more(model: nn.Module, chains: Sequence[Chain], price: Price, target: int) -> list[int]:
    """Channels to add to each chain: one share of all, then single channels while that comes nearer."""

    def at(share: float) -> list[int]:
        return [int(share * c.channels) for c in chains]

    low, high = 0.0, 1.0
    while _cost(model, chains, price, at(high)) < target and high < 1e4:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _cost(model, chains, price, at(middle)) <= target else (low, middle)
        )
    more = at(low)
    missing = target - _cost(model, chains, price, more)
    while True:  # each round adds one channel where it leaves least missing
        best = None
        for i in range(len(chains)):
            tried = [m + (j == i) for j, m in enumerate(more)]
            left = target - _cost(model, chains, price, tried)
            if abs(left) < abs(missing) and (best is None or abs(left) < abs(best[1])):
                best = (tried, left)
        if best is None:
            return more
        more, missing = best


def _cost(model: nn.Module, chains: Sequence[Chain], price: Price, more: Sequence[int]) -> int:
    """Cost of the network with `more` channels in each chain."""
    wider_in = {c.target: m for c, m in zip(chains, more, strict=True)}
    wider_out = {c.source: m for c, m in zip(chains, more, strict=True)}
    cost = price.total
    cost += price.other * sum(2 * m * len(c.norms) for c, m in zip(chains, more, strict=True))
    for name in wider_in.keys() | wider_out.keys():
        layer = model.get_submodule(name)
        out, before, *kernel = layer.weight.shape  # type: ignore[union-attr,misc]
        i, o = wider_in.get(name, 0), wider_out.get(name, 0)
        positions = torch.Size(kernel).numel()
        cost += price.weight[name] * ((out + o) * (before + i) - out * before) * positions
        cost += price.other * o if layer.bias is not None else 0
    return cost


def _widen(model: nn.Module, chain: Chain, extra: int) -> None:
    source = model.get_submodule(chain.source)
    target = model.get_submodule(chain.target)
    old: Tensor = source.weight  # type: ignore[assignment]
    drawn = torch.randn(extra, *old.shape[1:]) * (2 / old[0].numel()) ** 0.5
    source.weight = _grown(old, drawn, 0)
    if source.bias is not None:
        source.bias = _grown(source.bias, torch.zeros(extra), 0)  # type: ignore[arg-type]
    for name in chain.norms:
        norm = model.get_submodule(name)
        assert isinstance(norm, _NORMS)
        norm.weight = _grown(norm.weight, torch.ones(extra), 0)
        norm.bias = _grown(norm.bias, torch.zeros(extra), 0)
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean = _grown(norm.running_mean, torch.zeros(extra), 0).data
            norm.running_var = _grown(norm.running_var, torch.ones(extra), 0).data
        norm.num_features += extra
    into: Tensor = target.weight  # type: ignore[assignment]
    target.weight = _grown(into, torch.zeros(into.shape[0], extra, *into.shape[2:]), 1)
    if isinstance(source, nn.Conv2d) and isinstance(target, nn.Conv2d):
        source.out_channels += extra
        target.in_channels += extra
    elif isinstance(source, nn.Linear) and isinstance(target, nn.Linear):
        source.out_features += extra
        target.in_features += extra


def _grown(old: Tensor, new: Tensor, dim: int) -> nn.Parameter:
    new = new.to(device=old.device, dtype=old.dtype)
    return nn.Parameter(torch.cat([old.detach(), new], dim))
