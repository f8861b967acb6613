"""What `attach` promises: the baseline at the start, plain concatenation in value and gradient, arms
that are what they say, copies that are independent, and refusals that help."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aim_tune.addons.memory import attach, baseline_state_dict, detach
from aim_tune.addons.memory.readers import ReadConv2d, ReadLinear
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)

IMAGES = {"resnet8": (3, 16, 16), "small_cnn": (1, 16, 16), "mlp": (1, 8, 8), "mixed": (3, 8, 8),
          "tokens": (3, 8, 8)}  # fmt: skip
MEMORY = {"resnet8": (4, 4, 4), "small_cnn": (3, 3, 4), "mlp": (2, 2, 2), "mixed": (2, 2, 6),
          "tokens": (2, 2, 6)}  # fmt: skip
NETS = list(IMAGES)


class MlpBlock(nn.Module):
    """Channels-last maps or tokens, as in ConvNeXt, Swin and ViT."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(channels, 2 * channels), nn.Linear(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Tower(nn.Module):
    """A 2x2 patch stem, then blocks on maps [B, H, W, F] or, with a class token, on [B, 1 + N, F]."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 2, 2)
        self.first = nn.Parameter(torch.zeros(1, 1, 12)) if tokens else None
        self.blocks = nn.Sequential(MlpBlock(12), MlpBlock(12), MlpBlock(12))
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.first is not None:
            x = torch.cat([self.first.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], 1)
            return self.out(self.blocks(x).mean(1))
        return self.out(self.blocks(x.permute(0, 2, 3, 1)).mean((1, 2)))


def backbone(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    if name in ("mixed", "tokens"):
        return Tower(tokens=name == "tokens")
    row = BACKBONES[name]
    settings = {"hidden": 24} if name == "mlp" else {"width": 8}
    return row.load()(classes=10, image_shape=IMAGES[name], **row.fixed, **settings)


def images(name: str, count: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, *IMAGES[name], generator=generator, dtype=torch.float64).to(dtype)


def attached(name: str = "resnet8", **settings: Any) -> nn.Module:
    settings = {"memory_shape": MEMORY[name], "update_width": 4, "init": "normal", **settings}
    return attach(backbone(name), example_input=images(name), **settings)[0]


def shaken(model: nn.Module) -> nn.Module:
    """Every weight moved a little, so that nothing is zero or one by construction."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    return model


class NaiveConv2d(ReadConv2d):
    def forward(self, x: Tensor) -> Tensor:
        memory = self.cell.on_grid(x.shape[2], x.shape[3], self.mem_weight.shape[1])
        both = torch.cat([x, memory.expand(len(x), -1, -1, -1)], 1)
        return self._conv_forward(both, torch.cat([self.weight, self.mem_weight], 1), self.bias)


class NaiveLinear(ReadLinear):
    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, self._memory_at(x).expand(*x.shape[:-1], -1)], -1)
        return F.linear(both, torch.cat([self.weight, self.mem_weight], 1), self.bias)


def naive(model: nn.Module) -> nn.Module:
    """A copy that concatenates memory to inputs, as published."""
    model = copy.deepcopy(model)
    for module in model.modules():
        swap = {ReadConv2d: NaiveConv2d, ReadLinear: NaiveLinear}.get(type(module))
        module.__class__ = swap or module.__class__
    return model


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("arm", ["aim", "frozen", "no_update"])
def test_with_zero_init_an_arm_starts_as_the_baseline_exactly(name: str, arm: str) -> None:
    plain, x = backbone(name), images(name)
    model = attached(name, arm=arm, init="zero")
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(x), model.train(mode)(x))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("write", ["none", "sample", "batch"])
def test_reads_equal_plain_concatenation_with_gradients(name: str, write: str) -> None:
    split = shaken(attached(name, write=write, readers="all").double())
    results = []
    for model in (split, naive(split)):
        x = images(name, dtype=torch.float64).requires_grad_()
        out = model.train()(x)
        (out**2).sum().backward()
        results.append(
            {"out": out, "x": x.grad, **{k: p.grad for k, p in model.named_parameters()}}
        )
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-10, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("write", ["none", "sample", "batch"])
def test_gradients_reach_the_memory_and_every_other_parameter(name: str, write: str) -> None:
    model = shaken(attached(name, write=write, readers="all"))
    F.cross_entropy(model(images(name)), torch.tensor([0, 1, 2, 3])).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.abs().sum() > 0 or key.endswith("bias"), key


def test_with_zero_init_reads_learn_at_once_and_memory_after_one_step() -> None:
    model, x = attached(init="zero", write="none"), images("resnet8")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(x) ** 2).sum().backward()
    assert model.stage1[0].conv1.mem_weight.grad.abs().sum() > 0
    assert model.memory_bank.memory.grad.abs().sum() == 0
    optimizer.step()
    (model(x) ** 2).sum().backward()
    assert model.memory_bank.memory.grad.abs().sum() > 0


def test_the_baseline_state_dict_loads_and_comes_back_unchanged() -> None:
    theirs = backbone("resnet8", seed=1).state_dict()
    model = attached()
    missing, unexpected = model.load_state_dict(theirs, strict=False)
    assert unexpected == []
    assert all(k.startswith("memory_bank.") or k.endswith(".mem_weight") for k in missing)
    mine = baseline_state_dict(model)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)


def test_detach_gives_the_backbone_back_with_the_weights_it_has_now() -> None:
    model, plain, x = shaken(attached()), backbone("resnet8"), images("resnet8")
    plain.load_state_dict(baseline_state_dict(model))
    same = detach(model)
    assert same is model
    assert list(model.state_dict()) == list(plain.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert type(model.stage1[0].conv1) is nn.Conv2d
    assert torch.equal(plain(x), model(x))
    attach(model, memory_shape=(4, 4, 4), example_input=x)  # and can be given a memory again


def test_memory_is_in_the_state_dict_and_round_trips() -> None:
    model, other, x = shaken(attached(seed=1)).eval(), attached(seed=2).eval(), images("resnet8")
    assert model.state_dict()["memory_bank.memory"].shape == (1, 4, 4, 4)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("arm", ["aim", "frozen"])
def test_memory_follows_to(arm: str) -> None:
    model = attached(arm=arm).double()
    assert model.memory_bank.memory.dtype == torch.float64
    assert model(images("resnet8", dtype=torch.float64)).dtype == torch.float64
    assert {t.device.type for t in model.to("meta").state_dict().values()} == {"meta"}
    assert model(torch.empty(2, 3, 16, 16, dtype=torch.float64, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_compute_the_same_and_are_independent(name: str, copied: Any) -> None:
    model, x = shaken(attached(name)).eval(), images(name)
    expected = model(x)
    twin = copied(model)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        twin.memory_bank.memory.add_(1.0)
        for update in twin.memory_bank.updates:
            update.out.bias.add_(1.0)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("write", ["none", "sample", "batch"])
def test_evaluation_does_not_depend_on_an_images_company(name: str, write: str) -> None:
    model, x = shaken(attached(name, write=write)), images(name, 6)
    for _ in range(3):
        model.train()(x)
    model.eval()
    with torch.no_grad():
        together, turned = model(x), model(x.flip(0)).flip(0)
        alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(alone, together)
    torch.testing.assert_close(turned, together)


def test_writing_makes_later_layers_depend_on_the_image() -> None:
    seen: dict[str, Tensor] = {}
    for write in ("none", "sample", "batch"):
        model = attached(write=write)
        read = model.stage3[0].conv1
        read.register_forward_hook(lambda m, a, o, w=write: seen.update({w: m.cell.memory}))
        model(images("resnet8"))
    assert seen["none"].shape[0] == seen["batch"].shape[0] == 1
    assert seen["sample"].shape[0] == 4
    assert seen["sample"].std(0).min() > 0


def test_batch_writing_evaluates_with_its_running_mean() -> None:
    model, x = attached(write="batch"), images("resnet8")
    update = model.memory_bank.updates[0]
    start = update.running.clone()
    written = []
    handle = update.register_forward_hook(lambda m, a, out: written.append(out.detach()))
    model.train()(x)
    handle.remove()
    torch.testing.assert_close(update.running, 0.9 * start + 0.1 * written[0])
    before = update.running.clone()
    model.eval()(x)
    assert torch.equal(update.running, before)


def test_frozen_memory_never_changes_while_its_reads_learn() -> None:
    model, x = attached(arm="frozen", init="zero"), images("resnet8")
    memory = model.memory_bank.memory.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) ** 2).sum().backward()
        optimizer.step()
    assert torch.equal(model.memory_bank.memory, memory)
    assert memory.std() > 0.5
    assert model.stage1[0].conv1.mem_weight.abs().sum() > 0


def test_arms_differ_in_parameters_by_exactly_what_they_are_documented_to() -> None:
    counts = {"baseline": sum(p.numel() for p in backbone("resnet8").parameters())}
    for arm in ("frozen", "no_update", "aim"):
        counts[arm] = sum(p.numel() for p in attached(arm=arm).parameters())
    # buckets of 4x4x4: 1 on 16x16, 1 on 8x8; readers 8->8, 8->16, 16->32, all 3x3
    reads = 9 * (8 * 1 + 16 * 1 + 32 * 1)
    # an update: three 3x3 convolutions of width 4 from features + 4, batch norms, a 1x1 convolution
    updates = sum(9 * 4 * (f + 4 + 4 + 4) + 3 * 8 + (4 * 4 + 4) for f in (8, 16))
    assert counts["frozen"] - counts["baseline"] == reads
    assert counts["no_update"] - counts["frozen"] == 4 * 4 * 4
    assert counts["aim"] - counts["no_update"] == updates


def test_arms_share_the_memory_and_reads_they_start_from() -> None:
    arms = {arm: attached(arm=arm, seed=3) for arm in ("aim", "frozen", "no_update")}
    memories = [m.memory_bank.memory.detach() for m in arms.values()]
    reads = [m.stage2[0].conv1.mem_weight.detach() for m in arms.values()]
    assert all(torch.equal(memories[0], m) for m in memories)
    assert all(torch.equal(reads[0], r) for r in reads)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    plain = backbone("resnet8")
    state = torch.random.get_rng_state()
    settings = {"memory_shape": (4, 4, 4), "example_input": images("resnet8"), "init": "normal"}
    first = attach(copy.deepcopy(plain), seed=1, **settings)[0].state_dict()
    again = attach(copy.deepcopy(plain), seed=1, **settings)[0].state_dict()
    other = attach(copy.deepcopy(plain), seed=2, **settings)[0].state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["memory_bank.memory"], other["memory_bank.memory"])


def test_other_image_sizes_work_after_attaching() -> None:
    model = attached()
    for side in (8, 20, 32):
        assert model(torch.randn(2, 3, side, side)).isfinite().all()


def test_autocast_runs_forward_and_backward() -> None:
    model = shaken(attached())
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(model(images("resnet8")), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert model.memory_bank.memory.grad.isfinite().all()


def test_channels_last_gives_the_same_result() -> None:
    model, x = shaken(attached()).double(), images("resnet8", dtype=torch.float64)
    expected = model.eval()(x)
    model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(x.to(memory_format=torch.channels_last)), expected)


def test_the_report_states_the_bytes_that_are_really_kept_for_backward() -> None:
    x = torch.randn(32, 3, 16, 16)
    plain = backbone("resnet8")
    expected = [saved_bytes(plain, x) // 32]
    model, report = attach(plain, memory_shape=(4, 4, 16), example_input=x)
    expected.append(saved_bytes(model, x) // 32)
    # meta convolutions give contiguous results where real ones keep channels-last: one copy more
    assert report.saved_bytes == pytest.approx(expected, rel=0.03)
    before, after = report.saved_bytes
    assert f"bytes per image kept for backward {before:,} -> {after:,} (+" in str(report)


def test_measuring_leaves_weights_buffers_and_generator_alone() -> None:
    plain = backbone("resnet8").train()
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    state = torch.random.get_rng_state()
    attach(plain, memory_shape=(4, 4, 4), example_input=images("resnet8"), write="batch")
    assert torch.equal(state, torch.random.get_rng_state())
    assert plain.training
    after = plain.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_a_report_that_is_not_measured_says_so() -> None:
    given = {"memory_shape": (4, 4, 4), "example_input": images("resnet8"), "measured": False}
    report = attach(backbone("resnet8"), **given)[1]
    assert (report.flops, report.saved_bytes) == (None, None)
    assert "FLOPs per image not measured" in str(report)


def test_the_report_says_what_was_done() -> None:
    _, report = attach(
        backbone("resnet8"), memory_shape=(4, 4, 16), example_input=images("resnet8")
    )
    assert report.readers == ("stage1.0.conv1", "stage2.0.conv1", "stage3.0.conv1")
    assert report.update_points == ("stage1", "stage2")
    assert report.dropped == (("stage3", "no layer reads memory after it"),)
    assert report.skipped == (("fc", "its input has one position"),)
    assert report.parameters[0] == 19_954
    assert report.flops[1] > report.flops[0] > 0
    text = str(report)
    assert "memory 4x4x16 (256 numbers), arm aim, write sample" in text
    assert "parameters 19,954 -> " in text
    assert "stage3.0.conv1 (Conv2d, 8x8): 16 + 4 channels" in text
    assert "1 because its input has one position: fc" in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"memory_shape": (4, 4, 0)}, r"memory_shape is \[4, 4, 0\]; .* three positive integers"),
        ({"memory_shape": (4, 4)}, r"memory_shape is \[4, 4\]"),
        ({"memory_shape": (4, 4, 2.5)}, r"memory_shape is \[4, 4, 2.5\]"),
        ({"kernel_size": 4}, "kernel_size is 4; it must be odd"),
        ({"update_width": 0}, "update_width is 0; it must be 1 or more"),
        ({"activation": "sigmod"}, "unknown activation 'sigmod'; did you mean 'sigmoid'?"),
        ({"write": "batches"}, "unknown write 'batches'; did you mean 'batch'?"),
        ({"arm": "iced"}, "unknown arm 'iced'; .*frozen"),
        (
            {"memory_shape": (4, 4, 64)},
            r"memory of \[4, 4, 64\] does not fit: stage3.0.conv1 \(input: a 8x8 map of 16 channels\) "
            r"would read 16 memory channels, at most 8 .* Use at most \[4, 4, 32\]",
        ),
        ({"memory_shape": (64, 64, 1)}, "Use fewer rows and columns"),
        ({"example_input": torch.zeros(1, 5, 16, 16)}, "does not run on an input of shape"),
    ],
)
def test_the_impossible_is_refused_and_changes_nothing(settings: dict[str, Any], text: str) -> None:
    model = backbone("resnet8")
    before = repr(model)
    given = {"memory_shape": (4, 4, 4), "example_input": images("resnet8"), **settings}
    with pytest.raises(AttachError, match=text):
        attach(model, **given)
    assert repr(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_largest_memory_that_is_named_does_fit() -> None:
    attach(backbone("resnet8"), memory_shape=(4, 4, 32), example_input=images("resnet8"))
    with pytest.raises(AttachError):
        attach(backbone("resnet8"), memory_shape=(4, 4, 33), example_input=images("resnet8"))


def test_a_network_is_not_given_two_memories() -> None:
    with pytest.raises(AttachError, match="has a memory already; detach it first"):
        attach(attached(), memory_shape=(4, 4, 4), example_input=images("resnet8"))
    with pytest.raises(AttachError, match="has no memory attached"):
        detach(backbone("resnet8"))


def test_a_network_without_place_for_memory_is_refused() -> None:
    with pytest.raises(AttachError, match="no layer of this network can read memory"):
        attach(
            nn.Sequential(nn.ReLU()), memory_shape=(2, 2, 2), example_input=torch.zeros(1, 3, 4, 4)
        )
    one = nn.Sequential(nn.Conv2d(3, 8, 3))
    with pytest.raises(AttachError, match="write: sample has no place here"):
        attach(one, memory_shape=(2, 2, 2), example_input=torch.zeros(1, 3, 8, 8))
    attach(one, memory_shape=(2, 2, 2), example_input=torch.zeros(1, 3, 8, 8), write="none")


def test_a_part_that_runs_alone_says_what_to_do() -> None:
    with pytest.raises(AttachError, match="Call the network itself, not its parts"):
        attached().stage1(torch.zeros(1, 8, 16, 16))


class Checkpointed(nn.Module):
    """Runs `a` again during backward; `only` says in which mode, or under a condition."""

    def __init__(self, only: str = "always", reentrant: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.only, self.reentrant = nn.Conv2d(8, 8, 3, padding=1), only, reentrant

    def forward(self, x: Tensor) -> Tensor:
        when = {"always": True, "training": self.training, "asked": getattr(self, "asked", False)}
        a = checkpoint(self.a, x, use_reentrant=self.reentrant) if when[self.only] else self.a(x)
        return self.c(self.b(a))


@pytest.mark.parametrize("only", ["always", "training"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_refused_before_anything_is_changed(
    only: str, reentrant: bool
) -> None:
    net = Checkpointed(only, reentrant)
    given = {"memory_shape": (2, 2, 2), "example_input": torch.zeros(1, 3, 8, 8)}
    text = r"activation checkpointing \(torch.utils.checkpoint\) runs a again during backward"
    with pytest.raises(AttachError, match=text):
        attach(net, **given)
    assert type(net.a) is nn.Conv2d
    report = attach(net, readers=["b", "c"], write="none", **given)[1]  # outside it
    assert report.readers == ("b", "c")
    net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()


def test_activation_checkpointing_that_is_switched_on_later_gives_no_wrong_gradients() -> None:
    net = Checkpointed("asked")
    attach(net, memory_shape=(2, 2, 2), example_input=torch.zeros(1, 3, 8, 8))
    net.asked = True
    with pytest.raises(AttachError, match=r"activation checkpointing .* is not supported"):
        net(torch.randn(2, 3, 8, 8, requires_grad=True)).sum().backward()


def test_sequential_networks_keep_their_result() -> None:
    net = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 8, 3), b=nn.ReLU(), c=nn.Conv2d(8, 8, 3)))
    x = torch.randn(2, 3, 8, 8)
    expected = net(x)
    attach(net, memory_shape=(2, 2, 2), example_input=x)
    assert torch.equal(net(x), expected)


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Unique bytes that autograd keeps for backward, parameters and buffers not counted."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


@pytest.mark.parametrize(("write", "limit"), [("none", 1.005), ("batch", 1.03), ("sample", 1.03)])
def test_memory_adds_almost_nothing_to_what_is_kept_for_backward(write: str, limit: float) -> None:
    row = BACKBONES["resnet20"]
    plain = row.load()(classes=10, image_shape=(3, 32, 32), depth=20)
    x = torch.randn(16, 3, 32, 32)
    before = saved_bytes(plain, x)
    given = {"memory_shape": (4, 4, 16), "example_input": x, "kernel_size": 1, "write": write}
    model = attach(plain, **given)[0]
    assert saved_bytes(model, x) < limit * before
    assert saved_bytes(naive(model), x) > 1.25 * before
