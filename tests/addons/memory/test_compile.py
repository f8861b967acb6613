"""Compiled networks with memory: one graph, the same numbers. Slow: each test compiles for 10 to 60 s."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from aim_tune.addons.memory import attach
from aim_tune.models import BACKBONES

pytestmark = pytest.mark.slow

ARMS = ("aim", "frozen", "shuffled", "constant", "coordinates", "noise")


def network(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    net = BACKBONES["resnet8"].load()(classes=10, image_shape=(3, 16, 16), depth=8, width=8)
    given = {
        "memory_shape": (4, 4, 8),
        "init": "normal",
        "example_input": torch.zeros(1, 3, 16, 16),
    }
    return attach(net, **{**given, **settings})[0]


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_arm_is_captured_as_one_graph(arm: str, mode: str) -> None:
    torch._dynamo.reset()
    model = network(arm=arm).train(mode == "train")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(7)
    out = compiled(x)
    torch.manual_seed(7)
    if arm != "noise" or mode == "eval":
        torch.testing.assert_close(out, model(x))
    out.sum().backward()
    assert model.fc.weight.grad is not None


@pytest.mark.parametrize(
    ("write", "memory_shape"),
    [("none", (4, 4, 8)), ("sample", (4, 4, 8)), ("batch", (4, 4, 8)), ("sample", (2, 2, 16))],
)
def test_a_compiled_training_step_has_the_same_gradients(write: str, memory_shape: Any) -> None:
    torch._dynamo.reset()
    plain, model = (network(write=write, memory_shape=memory_shape) for _ in range(2))
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(4, 3, 16, 16)
    for net in (plain, compiled):
        (net(x) ** 2).sum().backward()
    theirs = dict(plain.named_parameters())
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[key].grad, rtol=1e-3, atol=1e-4)
