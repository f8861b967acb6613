"""Every fast path against a plain implementation written for this file, in float64, gradients included.

The plain one lays memory number by number, concatenates it to inputs and weights, convolves, normalizes
and averages as the definitions say; it takes only weights and the current memory from the network.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.vgg import cfgs, make_layers

from aim_tune.addons.memory import attach
from aim_tune.addons.memory.readers import ReadConv2d, ReadLinear
from aim_tune.addons.memory.updates import PublishedUpdateBlock, RowsConv2d, UpdateBlock
from aim_tune.models import BACKBONES

torch.set_num_threads(1)


@cache
def places(
    shape: tuple[int, int, int], height: int, width: int, channels: int, layout: str
) -> Tensor:
    """[channels, height, width]: which number of a memory (K, R, C) lies there, K x R x C where none."""
    k_all, rows, columns = shape
    numbers = k_all * rows * columns
    out = torch.full((channels, height, width), numbers)
    side = math.ceil(math.sqrt(numbers))
    taken = math.ceil(numbers / (height * width))
    r, c = math.ceil(rows / height), math.ceil(columns / width)
    rows2, columns2 = math.ceil(rows / r), math.ceil(columns / c)
    pr, pc = max(1, height // rows2), max(1, width // columns2)
    for k in range(k_all):
        for i in range(rows):
            for j in range(columns):
                number = (k * rows + i) * columns + j
                if layout == "raster":
                    order = (i * columns + j) * k_all + k
                    if height > side and width > side:
                        order += (side * side - numbers) // 2
                        top, left = (height - side) // 2, (width - side) // 2
                        place = (0, top + order // side, left + order % side)
                    else:
                        at, bucket = divmod(order, taken)
                        place = (bucket, at // width, at % width)
                else:
                    stacked = k * r * c + (i % r) * c + j % c
                    bucket, inside = divmod(stacked, pr * pc)
                    top, left = (height - rows2 * pr) // 2, (width - columns2 * pc) // 2
                    y, x = top + (i // r) * pr + inside // pc, left + (j // c) * pc + inside % pc
                    place = (bucket, y, x)
                out[place] = number
    return out


def laid(memory: Tensor, height: int, width: int, channels: int, layout: str) -> Tensor:
    with_zero = torch.cat([memory.flatten(1), memory.new_zeros(len(memory), 1)], 1)
    return with_zero[:, places(tuple(memory.shape[1:]), height, width, channels, layout)]


class PlainConv2d(ReadConv2d):
    def forward(self, x: Tensor) -> Tensor:
        memory = laid(self.cell.memory, *x.shape[2:], self.mem_weight.shape[1], self.cell.layout)
        both = torch.cat([x, memory.expand(len(x), -1, -1, -1)], 1)
        weight = torch.cat([self.weight, self.mem_weight], 1)
        return F.conv2d(both, weight, self.bias, self.stride, self.padding, self.dilation)


class PlainLinear(ReadLinear):
    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, self.cell.memory.flatten(1).expand(len(x), -1)], 1)
        return F.linear(both, torch.cat([self.weight, self.mem_weight], 1), self.bias)


def averaged(x: Tensor, rows: int, columns: int) -> Tensor:
    def span(i: int, parts: int, size: int) -> slice:
        return slice(i * size // parts, -(-(i + 1) * size // parts))

    height, width = x.shape[2:]
    cells = [
        x[:, :, span(i, rows, height), span(j, columns, width)].mean((2, 3))
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.stack(cells, 2).unflatten(2, (rows, columns))


class PlainUpdate(UpdateBlock):
    def forward(self, features: Tensor, memory: Tensor) -> Tensor:
        if self.shared and not self.training:
            return self.running
        x = features[:, :, None, None] if features.dim() == 2 else features
        x = self.plain(x, memory)
        new = F.conv2d(x, self.out.weight[:, :, None, None], self.out.bias)
        return new.mean(0, keepdim=True) if self.shared else new

    def plain(self, x: Tensor, memory: Tensor) -> Tensor:
        x = averaged(x, self.rows, self.columns)
        return self.chain(x, memory, [conv.weight for conv in self.convs])

    def chain(self, x: Tensor, memory: Tensor, weights: list[Tensor]) -> Tensor:
        x = torch.cat([x, memory.expand(len(x), -1, -1, -1)], 1)
        for weight, conv, norm in zip(weights, self.convs, self.norms, strict=True):
            kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
            x = F.conv2d(x, kernel, conv.bias, padding=kernel.shape[-1] // 2)
            if self.training:
                mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            else:
                mean, var = norm.running_mean, norm.running_var
            scale = norm.weight / torch.sqrt(var + norm.eps)
            x = (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            x = 1 / (1 + torch.exp(-x))
        return x


class PlainPublishedUpdate(PlainUpdate):
    def plain(self, x: Tensor, memory: Tensor) -> Tensor:
        weights = [conv.weight for conv in self.convs]
        weights[0] = torch.cat([weights[0], self.mem_weight], 1)
        memory = laid(memory, *x.shape[2:], self.mem_weight.shape[1], self.cell.layout)
        return averaged(self.chain(x, memory, weights), self.rows, self.columns)


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    ReadConv2d: PlainConv2d,
    ReadLinear: PlainLinear,
    UpdateBlock: PlainUpdate,
    PublishedUpdateBlock: PlainPublishedUpdate,
}


def plain(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def vgg16(*, batch_norm: bool) -> nn.Module:
    features = make_layers(cfgs["D"], batch_norm=batch_norm)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def house(name: str, **settings: Any) -> nn.Module:
    row = BACKBONES[name]
    shape = (3, 20, 20) if name == "resnet8" else (3, 5, 5)
    return row.load()(classes=10, image_shape=shape, **row.fixed, **settings)


NETS: dict[str, tuple[Any, int]] = {
    "resnet8": (lambda: house("resnet8", width=8), 20),
    "resnet18": (lambda: resnet18(num_classes=10), 64),
    "resnet50": (lambda: resnet50(num_classes=10), 64),
    "vgg16": (lambda: vgg16(batch_norm=False), 32),
    "vgg16_bn": (lambda: vgg16(batch_norm=True), 32),
    "mlp": (lambda: house("mlp", hidden=72), 5),
}


def network(name: str, **settings: Any) -> tuple[nn.Module, Tensor]:
    """A network with every weight moved, in float64, and a batch for it."""
    torch.manual_seed(0)
    build, side = NETS[name]
    x = torch.randn(3, 3, side, side, dtype=torch.float64)
    given = {"memory_shape": (2, 2, 8), "update_width": 4, "init": "normal", **settings}
    model = attach(build(), example_input=x.float(), **given)[0].double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return model, x


def passed(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Result and all gradients, by name."""
    x = x.clone().requires_grad_()
    out = model(x)
    (out**2).mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None for g in grads.values())
    return {"out": out.detach(), "x": x.grad, **grads}


def assert_equal_to_plain(model: nn.Module, x: Tensor) -> None:
    reference = plain(model)
    ours, theirs = passed(model.train(), x), passed(reference.train(), x)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(
            value,
            theirs[name],
            rtol=1e-8,
            atol=1e-8 * scale + 1e-13,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    reference = plain(model)  # with the statistics of that pass
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), reference.eval()(x), rtol=1e-8, atol=1e-10)


WAYS = [
    {"write": "none", "layout": "aligned"},
    {"write": "none", "layout": "raster"},
    *(
        {"write": write, "pool": pool, "layout": layout}
        for write in ("sample", "batch")
        for pool in ("first", "last")
        for layout in ("aligned", "raster")
    ),
]
FEW_WAYS = [
    {"write": "none", "layout": "aligned"},
    {"write": "sample", "pool": "first", "layout": "aligned"},
    {"write": "batch", "pool": "last", "layout": "raster"},
]


def ids(way: dict[str, Any]) -> str:
    return " ".join(str(v) for v in way.values())


@pytest.mark.parametrize("way", WAYS, ids=ids)
@pytest.mark.parametrize("name", ["resnet8", "mlp"])
def test_small_networks_equal_plain_concatenation_in_every_way(
    name: str, way: dict[str, Any]
) -> None:
    assert_equal_to_plain(*network(name, **way))


@pytest.mark.parametrize("way", FEW_WAYS, ids=ids)
def test_resnet18_equals_plain_concatenation(way: dict[str, Any]) -> None:
    assert_equal_to_plain(*network("resnet18", **way))


@pytest.mark.slow  # 3 to 6 s each
@pytest.mark.parametrize("way", FEW_WAYS, ids=ids)
@pytest.mark.parametrize("name", ["resnet50", "vgg16", "vgg16_bn"])
def test_large_networks_equal_plain_concatenation(name: str, way: dict[str, Any]) -> None:
    assert_equal_to_plain(*network(name, **way))


@pytest.mark.parametrize(
    ("memory_shape", "kernel_size"),
    [((4, 4, 4), 3), ((3, 3, 4), 3), ((2, 3, 5), 5), ((3, 2, 7), 1)],
)
@pytest.mark.parametrize("readers", ["block", "all"])
def test_memories_of_every_form_equal_plain_concatenation(
    memory_shape: tuple[int, int, int], kernel_size: int, readers: str
) -> None:
    model, x = network(
        "resnet8", memory_shape=memory_shape, kernel_size=kernel_size, readers=readers
    )
    few = memory_shape[0] * memory_shape[1] <= 9 and kernel_size > 1
    assert any(isinstance(m, RowsConv2d) for m in model.modules()) == few
    assert_equal_to_plain(model, x)


@pytest.mark.parametrize("memory_shape", [(2, 2, 8), (4, 4, 4)])
def test_channels_last_networks_equal_plain_concatenation(
    memory_shape: tuple[int, int, int],
) -> None:
    model, x = network("resnet18", memory_shape=memory_shape)
    model.to(memory_format=torch.channels_last)
    assert_equal_to_plain(model, x.to(memory_format=torch.channels_last))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("memory_shape", [(2, 2, 8), (4, 4, 8)])
def test_an_update_gives_features_a_gradient_that_lies_as_they_do(
    memory_shape: tuple[int, int, int], form: torch.memory_format
) -> None:
    model, _ = network("resnet8", memory_shape=memory_shape)
    block = model.memory_bank.updates[0].to(memory_format=form)
    features = torch.randn(3, 8, 20, 20, dtype=torch.float64).contiguous(memory_format=form)
    seen: list[Tensor] = []
    inner = features.requires_grad_() * 1
    inner.register_hook(seen.append)
    block(inner, model.memory_bank.memory).sum().backward()
    assert seen[0].is_contiguous(memory_format=form)
