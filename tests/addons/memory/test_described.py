"""The article's text on VGG16 and fully connected networks: counted by hand, and recomputed plainly."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons.memory import PRESETS, attach, described_shape, keras_count
from aim_tune.addons.memory.published import reshape_as_published
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)


def described(model: nn.Module, x: Tensor, **settings: Any) -> nn.Module:
    shape = described_shape(model, x)
    given = {**PRESETS["described"], "memory_shape": shape, "example_input": x, **settings}
    return attach(model, **given)[0]


def test_the_memory_is_as_large_as_the_image_on_the_smallest_map() -> None:
    shapes = {}
    for name in ("keras_resnet50", "resnet50", "vgg16"):
        with torch.device("meta"):
            row = BACKBONES[name]
            net = row.load()(classes=100, image_shape=(3, 224, 224), **row.fixed)
            shapes[name] = described_shape(net, torch.zeros(1, 3, 224, 224))
    published = (7, 7, 1024)
    assert shapes == {"keras_resnet50": published, "resnet50": published, "vgg16": (14, 14, 256)}
    assert math.prod(published) == math.prod(shapes["vgg16"]) == 224 * 224
    with pytest.raises(AttachError, match="no layer of this network can read"):
        described_shape(nn.ReLU(), torch.zeros(1, 3))


VGG16 = ((64, 2, 1), (128, 2, 4), (256, 3, 16), (512, 3, 64), (512, 3, 256))
"""Channels, convolutions, and memory channels read (50,176 numbers over the map) of each resolution."""


def test_vgg16_as_described_has_the_parameters_counted_by_hand() -> None:
    with torch.device("meta"):
        net = BACKBONES["vgg16"].load()(name="vgg16", classes=100, image_shape=(3, 224, 224))
        plain = keras_count(net)[0]
        net = described(net, torch.zeros(1, 3, 224, 224))
    reads = sum(9 * width * convs * read for width, convs, read in VGG16)
    memory = 256 * 256 + 256
    updates = sum(
        (9 * (width + read) * 16 + 16) + (9 * 16 * 16 + 16) + (9 * 16 * 32 + 32)  # convolutions
        + 4 * (16 + 16 + 32)  # batch norms, statistics included
        + 32 * 256 + 256  # 1x1 to the memory
        for width, _, read in VGG16
    )  # fmt: skip
    assert plain == 134_670_244
    assert keras_count(net)[0] - plain == reads + memory + updates
    assert keras_count(net)[0] == 139_620_148


def test_a_fully_connected_net_as_described_has_the_parameters_counted_by_hand() -> None:
    net = BACKBONES["mlp"].load()(classes=10, image_shape=(1, 28, 28))  # 784, 256, 256, 10
    x = torch.zeros(1, 1, 28, 28)
    assert described_shape(net, x) == (1, 1, 128)
    plain = keras_count(net)[0]
    model = described(net, x)
    reads = 128 * (256 + 256 + 10)
    memory = 128 * 128 + 128  # a dense layer on ones
    update = ((256 + 128) * 16 + 16) + (16 * 16 + 16) + (16 * 32 + 32) + 4 * 64 + 32 * 128 + 128
    assert keras_count(model)[0] - plain == reads + memory + 2 * update
    assert len(model.memory_bank.updates) == 2  # after both hidden layers


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(9)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model


def small_vgg() -> nn.Module:
    def conv(before: int, after: int) -> nn.Conv2d:
        return nn.Conv2d(before, after, 3, padding=1)

    return nn.Sequential(
        conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.MaxPool2d(2),
        conv(8, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def laid(memory_BKRC: Tensor, side: int) -> Tensor:
    """The article's reshape of a memory, as a map [B, buckets, side, side]."""
    return reshape_as_published(memory_BKRC.permute(0, 2, 3, 1), side, side).permute(0, 3, 1, 2)


def read(layer: nn.Module, x: Tensor, memory_BKRC: Tensor) -> Tensor:
    """Plain concatenation."""
    both = torch.cat([x, laid(memory_BKRC, x.shape[-1]).expand(len(x), -1, -1, -1)], 1)
    weight = torch.cat([layer.weight, layer.mem_weight], 1)
    return F.conv2d(both, weight, layer.bias, padding=weight.shape[-1] // 2)


def rewritten(block: nn.Module, x: Tensor, memory_BKRC: Tensor, rows: int) -> Tensor:
    """The article's update block: three convolutions, batch norm, sigmoid; average; 1x1."""
    first = nn.Module()
    first.weight, first.bias = block.convs[0].weight, block.convs[0].bias
    first.mem_weight = block.mem_weight
    x = torch.sigmoid(block.norms[0](read(first, x, memory_BKRC)))
    for conv, norm in zip(block.convs[1:], block.norms[1:], strict=True):
        x = torch.sigmoid(norm(conv(x)))
    x = F.avg_pool2d(x, x.shape[-1] // rows)
    return block.out(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_small_vgg_as_described_computes_what_the_text_says() -> None:
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    model = shaken(described(small_vgg(), x.float())).eval()
    bank, layers = model.memory_bank, list(model)
    memory = bank.first(torch.ones(4, dtype=torch.float64)).view(1, 4, 1, 1).expand(-1, -1, 4, 4)
    assert bank.start().shape == (1, 4, 4, 4)  # 64 numbers: the pixels; 4x4: the smallest map
    out = F.relu(read(layers[0], x, memory))  # one number per pixel
    memory = rewritten(bank.updates[0], out, memory, 4)
    out = F.max_pool2d(F.relu(read(layers[2], out, memory)), 2)
    out = F.relu(read(layers[5], out, memory))  # four numbers per position
    memory = rewritten(bank.updates[1], out, memory, 4)
    out = F.relu(read(layers[7], out, memory))
    expected = layers[11](out.mean((2, 3)))
    torch.testing.assert_close(model(x), expected)


def test_a_small_memory_is_padded_with_zeros_in_the_middle_of_a_large_map() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model = shaken(described(small_vgg(), x.float(), memory_shape=(1, 1, 4))).eval()
    start = model.memory_bank.start()
    square = laid(start, 8)[0, 0]
    assert square[3:5, 3:5].flatten().tolist() == start.flatten().tolist()
    assert square.abs().sum() == start.abs().sum()
    model.memory_bank.begin(model, ())
    first = model[0]
    torch.testing.assert_close(first(x), read(first, x, start))
    model.memory_bank.end(model, (), x)


def test_a_fully_connected_net_as_described_computes_what_the_text_says() -> None:
    net = BACKBONES["mlp"].load()(classes=4, image_shape=(1, 4, 4), hidden=12)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    model = shaken(described(net, x.float())).eval()
    memory = model.memory_bank.first(torch.ones(6, dtype=torch.float64)).expand(3, -1)

    def dense(layer: nn.Module, value: Tensor) -> Tensor:
        weight = torch.cat([layer.weight, layer.mem_weight], 1)
        return F.linear(torch.cat([value, memory], 1), weight, layer.bias)

    out = x.flatten(1)
    for i, layer in enumerate((model.dense1, model.dense2)):
        out = F.relu(dense(layer, out))
        memory = rewritten(
            model.memory_bank.updates[i], out[:, :, None, None], memory[:, :, None, None], 1
        ).flatten(1)
    torch.testing.assert_close(model(x), dense(model.out, out))
