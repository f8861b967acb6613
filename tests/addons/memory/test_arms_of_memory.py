"""Each control arm is what its line in the table says, and no more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.addons import ADDONS
from aim_tune.addons.dry_run import count_flops
from aim_tune.addons.memory import attach, baseline_state_dict, build
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)

SHAPE = (3, 16, 16)
CONTROLS = ("reset", "shuffled", "constant", "coordinates", "noise")


def backbone(name: str = "resnet8", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    row = BACKBONES[name]
    settings = settings or ({"width": 8} if name == "resnet8" else {})
    return row.load()(classes=10, image_shape=SHAPE, **row.fixed, **settings)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(5))


def attached(arm: str, **settings: Any) -> nn.Module:
    given = {"memory_shape": (4, 4, 8), "update_width": 4, "init": "normal", **settings}
    return attach(backbone(), example_input=images(), arm=arm, **given)[0]


def read_by(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The map that a layer reads in a pass over x."""
    seen = []
    module = model.get_submodule(layer)
    channels = module.mem_weight.shape[1]
    hook = module.register_forward_hook(
        lambda m, args, out: seen.append(m.cell.on_grid(*args[0].shape[2:], channels).detach())
    )
    model(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_starts_as_the_baseline_exactly(arm: str) -> None:
    plain, model = backbone(), attached(arm, init="zero")
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(images()), model.train(mode)(images()))


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_learns_with_all_its_parameters_and_copies(arm: str) -> None:
    model = attached(arm)
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3])).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    assert list(baseline_state_dict(model)) == list(backbone().state_dict())


@pytest.mark.parametrize("arm", CONTROLS)
def test_a_control_judges_an_image_without_its_company(arm: str) -> None:
    model = attached(arm)
    for _ in range(2):
        model.train()(images())
    model.eval()
    alone = torch.cat([model(one[None]) for one in images()])
    torch.testing.assert_close(alone, model(images()))


def test_constant_reads_one_value_per_channel_without_position() -> None:
    model = attached("constant")
    assert model.memory_bank.memory.shape == (1, 8, 1, 1)
    assert isinstance(model.memory_bank.memory, nn.Parameter)
    assert len(model.memory_bank.updates) == 0
    read = read_by(model, "stage3.0.conv1", images())
    assert torch.equal(read, read[:, :, :1, :1].expand_as(read))
    assert torch.equal(read[0, :, 0, 0], model.memory_bank.memory[0, : read.shape[1], 0, 0])


def test_constant_has_the_reads_of_aim() -> None:
    aim, constant = attached("aim"), attached("constant")
    for stage in ("stage1", "stage2", "stage3"):
        name = f"{stage}.0.conv1"
        shape = aim.get_submodule(name).mem_weight.shape
        assert constant.get_submodule(name).mem_weight.shape == shape


def test_coordinates_reads_x_and_y_and_learns_no_memory() -> None:
    model = attached("coordinates")
    assert not any(k.startswith("memory_bank") for k, _ in model.named_parameters())
    x, y = read_by(model, "stage2.0.conv1", images())[0]
    assert x.shape == (16, 16)
    torch.testing.assert_close(x[3], torch.linspace(-1, 1, 16))
    torch.testing.assert_close(y[:, 3], torch.linspace(-1, 1, 16))


def test_reset_rewrites_but_keeps_nothing_between_passes() -> None:
    model = attached("reset")
    start = model.memory_bank.memory.clone()
    assert "memory_bank.memory" not in dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(images()) ** 2).sum().backward()
    optimizer.step()
    assert torch.equal(model.memory_bank.memory, start)
    assert read_by(model, "stage3.0.conv1", images()).std(0).min() > 0  # each image its own
    assert torch.equal(start, attached("aim").memory_bank.memory)


def test_shuffled_gives_an_image_the_memory_written_for_its_neighbor() -> None:
    aim, shuffled = attached("aim"), attached("shuffled")
    name = "stage2.0.conv1"  # after the first update
    own, given = read_by(aim, name, images()), read_by(shuffled, name, images())
    assert torch.equal(given, own.roll(1, 0))
    assert sum(p.numel() for p in aim.parameters()) == sum(p.numel() for p in shuffled.parameters())


def test_shuffled_evaluates_with_the_memory_of_one_training_image() -> None:
    model = attached("shuffled")
    written = read_by(model.train(), "stage2.0.conv1", images()).roll(-1, 0)
    evaluated = read_by(model.eval(), "stage2.0.conv1", images().flip(0))
    assert torch.equal(evaluated, written[:1])


def test_noise_is_fresh_in_training_and_absent_in_evaluation() -> None:
    model, name = attached("noise"), "stage3.0.conv1"
    first, second = (read_by(model.train(), name, images()) for _ in range(2))
    assert first.shape[0] == 4
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert abs(first.std().item() - 1) < 0.2
    assert read_by(model.eval(), name, images()).abs().sum() == 0
    assert "memory_bank.memory" not in dict(model.named_parameters())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet8", {"width": 8}),
        ("resnet20", {"width": 16}),
        ("small_cnn", {"width": 16}),
        ("mlp", {"hidden": 64, "depth": 3}),
        ("resnet18", {"stem": "small"}),
    ],
)
def test_wide_has_the_parameters_of_aim_and_starts_as_the_baseline(
    name: str, settings: dict[str, Any]
) -> None:
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE, "seed": 3}
    if name == "mlp":
        given["memory_shape"] = [1, 1, 16]
    counts = {
        arm: sum(
            p.numel() for p in build(backbone(name, **settings), arm=arm, **given).parameters()
        )
        for arm in ("aim", "wide")
    }
    plain = backbone(name, **settings)
    assert counts["aim"] > sum(p.numel() for p in plain.parameters())
    assert abs(counts["wide"] - counts["aim"]) <= 0.01 * counts["aim"]
    wide = build(backbone(name, **settings), arm="wide", **given).eval()
    assert not hasattr(wide, "memory_bank")
    torch.testing.assert_close(wide(images()), plain.eval()(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet8", {"width": 8}),
        ("resnet20", {"width": 16}),
        ("small_cnn", {"width": 16}),
        ("mlp", {"hidden": 64, "depth": 3}),
        ("resnet18", {"stem": "small"}),
    ],
)
def test_flop_matched_has_the_flops_of_aim_and_starts_as_the_baseline(
    name: str, settings: dict[str, Any]
) -> None:
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE, "seed": 3}
    if name == "mlp":
        given["memory_shape"] = [1, 1, 16]
    nets = {a: build(backbone(name, **settings), arm=a, **given) for a in ("aim", "flop_matched")}
    aim, matched = (count_flops(net, SHAPE, torch.float32) for net in nets.values())
    plain = backbone(name, **settings)
    assert aim > count_flops(plain, SHAPE, torch.float32)
    assert abs(matched - aim) <= 0.01 * aim
    assert not hasattr(nets["flop_matched"], "memory_bank")
    out = nets["flop_matched"].eval()(images())
    torch.testing.assert_close(out, plain.eval()(images()), rtol=1e-4, atol=1e-5)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_step_matched_is_as_wide_as_the_study_measured() -> None:
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE, "seed": 3, "arm": "step_matched"}
    plain = parameters(backbone())
    assert parameters(build(backbone(), widen_to=2 * plain, **given)) == pytest.approx(
        2 * plain, rel=0.01
    )
    assert parameters(build(backbone(), widen_to=plain - 1, **given)) == plain  # never narrower
    with pytest.raises(
        AttachError, match="needs widen_to, the number of parameters at which a step"
    ):
        build(backbone(), **given)


def test_time_matched_is_the_backbone_itself() -> None:
    plain = backbone()
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE, "seed": 3}
    assert build(plain, arm="time_matched", **given) is plain
    assert not hasattr(plain, "memory_bank")


def test_an_unknown_arm_is_named() -> None:
    given = {"memory_shape": (2, 2, 2), "image_shape": SHAPE, "seed": 0}
    with pytest.raises(AttachError, match="unknown arm 'flop_match'; did you mean 'flop_matched'"):
        build(backbone(), arm="flop_match", **given)


def test_new_channels_of_wide_learn_and_leave_other_layers_alone() -> None:
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE, "seed": 3}
    plain, wide = backbone().state_dict(), build(backbone(), arm="wide", **given)
    changed = {k for k, v in wide.state_dict().items() if v.shape != plain[k].shape}
    inner = {f"stage{i}.0.{n}" for i in (1, 2, 3) for n in ("conv1.weight", "conv2.weight")}
    assert {k for k in changed if "conv" in k} <= inner
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(wide(images()), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    conv = wide.stage3[0].conv1
    assert conv.weight.grad[32:].abs().sum() > 0


def test_wide_draws_from_its_seed_and_leaves_the_global_generator_alone() -> None:
    given = {**ADDONS["memory"].defaults(), "image_shape": SHAPE}
    plain = backbone()
    state = torch.random.get_rng_state()
    first, again, other = (
        build(copy.deepcopy(plain), arm="wide", seed=s, **given).state_dict() for s in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


class Forks(nn.Module):
    """Its hidden channels go two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(hidden) + hidden


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"arm": "shuffled", "write": "batch"}, "nothing to shuffle: all images share one memory"),
        ({"arm": "reset", "write": "none"}, "arm reset with write: none is arm frozen"),
        ({"arm": "noise", "origin": "conv"}, "origin: conv cannot be combined with arm noise"),
        ({"carry": "ema", "rule": "residual"}, "adds what it carries again and again"),
    ],
)
def test_arms_that_would_not_be_what_they_say_are_refused(
    settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(AttachError, match=text):
        attached(**{"arm": "aim", **settings})


def test_arms_of_position_are_refused_where_there_is_none() -> None:
    for arm in ("constant", "coordinates"):
        with pytest.raises(AttachError, match="this network has no positions"):
            attach(backbone("mlp"), memory_shape=(1, 1, 8), example_input=images(), arm=arm)


def test_wide_is_refused_where_nothing_can_be_widened() -> None:
    given = {"memory_shape": (2, 2, 2), "image_shape": SHAPE, "seed": 0}
    with pytest.raises(AttachError, match="found no hidden channels to add to"):
        build(Forks(), arm="wide", **given)
