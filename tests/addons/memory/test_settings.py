"""Each setting of the memory does what its line in the table says: layout, pool, rule, carry."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons.memory import attach
from aim_tune.models import BACKBONES

torch.set_num_threads(1)

VARIANTS: dict[str, dict[str, Any]] = {
    "raster": {"layout": "raster"},
    "pool last": {"pool": "last"},
    "pool last, raster, batch": {"pool": "last", "layout": "raster", "write": "batch"},
    "residual": {"rule": "residual"},
    "residual, batch": {"rule": "residual", "write": "batch"},
    "ema": {"carry": "ema"},
    "ema, batch": {"carry": "ema", "write": "batch"},
    "first block": {"update_at": "first"},
    "as described": {"origin": "conv", "pool": "last", "layout": "raster", "update_at": "first"},
}
SHAPES = {"resnet8": (3, 16, 16), "small_cnn": (3, 16, 16), "mlp": (1, 4, 4)}


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    row = BACKBONES[name]
    settings = {"hidden": 24} if name == "mlp" else {"width": 8}
    return row.load()(classes=10, image_shape=SHAPES[name], **row.fixed, **settings)


def images(name: str = "resnet8", count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPES[name], generator=torch.Generator().manual_seed(5))


def attached(name: str = "resnet8", **settings: Any) -> nn.Module:
    shape = (1, 1, 8) if name == "mlp" else (4, 4, 4)
    given = {"memory_shape": shape, "update_width": 4, "init": "normal", **settings}
    return attach(backbone(name), example_input=images(name), **given)[0]


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def trained(model: nn.Module, steps: int = 3) -> nn.Module:
    for _ in range(steps):
        model.train()(images())
    return model.eval()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_setting_starts_as_the_baseline_exactly(name: str, variant: str) -> None:
    plain, model = backbone(name), attached(name, init="zero", **VARIANTS[variant])
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(images(name)), model.train(mode)(images(name)))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter_in_every_setting(name: str, variant: str) -> None:
    model = shaken(attached(name, **VARIANTS[variant]))
    F.cross_entropy(model(images(name)), torch.tensor([0, 1, 2, 3])).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.abs().sum() > 0 or key.endswith("bias"), key


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluation_does_not_depend_on_an_images_company_in_any_setting(variant: str) -> None:
    model = trained(shaken(attached(**VARIANTS[variant])))
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in images()])
        torch.testing.assert_close(alone, model(images()))
        torch.testing.assert_close(model(images().flip(0)).flip(0), alone)


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_keep_every_setting(variant: str) -> None:
    model = trained(shaken(attached(**VARIANTS[variant])))
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images()))
    other = attached(seed=1, **VARIANTS[variant]).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images()), model(images()))


def test_pooling_last_equals_the_published_order_of_operations() -> None:
    model = shaken(attached(pool="last", layout="raster")).eval()
    block = model.memory_bank.updates[0]
    features = torch.randn(2, 8, 16, 16)
    start = model.memory_bank.memory
    model.memory_bank.begin(model, ())
    written = block(features, start)
    model.memory_bank.end(model, (), features)
    numbers = start.permute(0, 2, 3, 1).reshape(1, 64)  # 64 numbers on 256 positions: the middle
    laid = torch.zeros(1, 1, 16, 16)
    laid[0, 0, 4:12, 4:12] = numbers.view(8, 8)
    x = torch.cat([features, laid.expand(2, -1, -1, -1)], 1)
    weights = [conv.weight for conv in block.convs]
    weights[0] = torch.cat([weights[0], block.mem_weight], 1)
    for weight, conv, norm in zip(weights, block.convs, block.norms, strict=True):
        x = torch.sigmoid(norm(F.conv2d(x, weight, conv.bias, padding=1)))
    x = F.avg_pool2d(x, 4)
    expected = F.conv2d(x, block.out.weight[:, :, None, None], block.out.bias)
    torch.testing.assert_close(written, expected)


def test_pooling_last_widens_its_third_convolution_as_published() -> None:
    block = attached(pool="last").memory_bank.updates[0]
    assert [conv.out_channels for conv in block.convs] == [4, 4, 8]
    assert all(conv.bias is not None for conv in block.convs)


def test_a_residual_update_adds_to_the_memory_it_was_given() -> None:
    block = shaken(attached(rule="residual")).memory_bank.updates[0].eval()
    features, memory = torch.randn(2, 8, 16, 16), torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        added = block(features, memory) - memory
        block.residual = False
        torch.testing.assert_close(block(features, memory), added)
    assert added.abs().sum() > 0


def test_a_residual_update_starts_as_no_update() -> None:
    residual, static = attached(rule="residual"), attached(arm="no_update")
    assert torch.equal(residual(images()), static(images()))


def test_a_carried_memory_moves_towards_what_was_written_last_in_training_only() -> None:
    model = attached(carry="ema")
    bank = model.memory_bank
    written: list[Tensor] = []
    bank.updates[-1].register_forward_hook(lambda m, a, out: written.append(out.detach()))
    assert bank.carried.abs().sum() == 0
    model.train()(images())
    torch.testing.assert_close(bank.carried, 0.1 * written[0].mean(0, keepdim=True))
    before = bank.carried.clone()
    torch.testing.assert_close(bank.start(), bank.memory + before)
    model.eval()(images())
    assert torch.equal(bank.carried, before)
    assert not bank.carried.requires_grad
    model.train()(images())
    torch.testing.assert_close(bank.carried, 0.9 * before + 0.1 * written[2].mean(0, keepdim=True))


def test_arms_that_write_nothing_carry_nothing() -> None:
    for arm in ("frozen", "no_update"):
        assert "memory_bank.carried" not in attached(arm=arm, carry="ema").state_dict()


def test_updates_can_come_after_the_first_block_of_a_resolution() -> None:
    row = BACKBONES["resnet20"]
    points = {}
    for place in ("first", "last"):
        net = row.load()(classes=10, image_shape=(3, 16, 16), depth=20, width=8)
        given = {"memory_shape": (4, 4, 4), "example_input": images(), "update_at": place}
        points[place] = attach(net, **given)[1].update_points
    assert points["first"] == ("stage1.0", "stage2.0", "stage3.0")
    assert points["last"] == ("stage1", "stage2")
