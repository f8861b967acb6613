"""The published run, exactly: its counts, its reshape, its flaws, and that the common builder builds it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from aim_tune.addons import ADDONS
from aim_tune.addons.dry_run import count_flops
from aim_tune.addons.memory import (
    PRESETS,
    attach,
    build_published,
    keras_count,
    published_resnet50,
)
from aim_tune.addons.memory.published import reshape_as_published
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)


def control(classes: int = 100, side: int = 224, stem_stride: int = 1) -> nn.Module:
    build = BACKBONES["keras_resnet50"].load()
    return build(classes=classes, image_shape=(3, side, side), stem_stride=stem_stride)


def attached(preset: str, stem_stride: int) -> nn.Module:
    """On the meta device, at the published size."""
    with torch.device("meta"):
        model = control(stem_stride=stem_stride)
        return attach(model, example_input=torch.zeros(1, 3, 224, 224), **PRESETS[preset])[0]


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert keras_count(published_resnet50()) == (26_673_380, 26_619_876)
        assert keras_count(published_resnet50(classes=120))[0] == 26_714_360


def test_its_control_is_keras_resnet50() -> None:
    with torch.device("meta"):
        assert keras_count(control())[0] == 23_792_612
        assert keras_count(control(stem_stride=2))[0] == 23_792_612


@pytest.mark.parametrize(
    ("preset", "stem_stride", "total", "trainable"),
    [
        ("published", 1, 26_673_380, 26_619_876),
        ("described", 1, 25_996_580, 25_942_948),
        ("described", 2, 27_308_516, 27_254_884),
    ],
)
def test_the_presets_have_the_counts_of_the_method(
    preset: str, stem_stride: int, total: int, trainable: int
) -> None:
    assert keras_count(attached(preset, stem_stride)) == (total, trainable)


def test_the_difference_to_the_control_is_reads_updates_and_two_memories() -> None:
    with torch.device("meta"):
        model = published_resnet50()
        plain = keras_count(control())[0]
    updates = keras_count(model.updates)[0]
    memories = keras_count(model.first)[0] + keras_count(model.second)[0]
    reads = keras_count(model)[0] - plain - updates - memories
    assert (updates, memories, reads) == (393_216, 2_099_200, 388_352)


def test_the_update_of_stage_5_is_pruned_as_published_but_alive_as_described() -> None:
    example = torch.zeros(1, 3, 224, 224, device="meta")
    with torch.device("meta"):
        _, published = attach(control(), example_input=example, **PRESETS["published"])
        _, described = attach(control(), example_input=example, **PRESETS["described"])
    heads = tuple(f"stage{i}.0" for i in (2, 3, 4, 5))
    assert published.update_points == heads[:3]
    assert [name for name, _ in published.dropped] == [heads[3]]
    assert described.update_points == heads
    second = [r.name for r in published.plan.readers if r.second]
    assert len(second) == 12
    assert not any(name.split(".")[1] == "0" for name in second)


def numbered(rows: int, columns: int, channels: int) -> Tensor:
    return torch.arange(1.0, rows * columns * channels + 1).view(1, rows, columns, channels)


def test_the_reshape_makes_buckets_of_a_memory_that_is_larger_than_the_map() -> None:
    out = reshape_as_published(numbered(2, 2, 4), 2, 4)  # 16 numbers on 8 positions
    assert out.shape == (1, 2, 4, 2)
    assert out[0].flatten(0, 1).tolist() == [[2 * i + 1, 2 * i + 2] for i in range(8)]


def test_the_reshape_puts_a_smaller_memory_in_the_middle_of_zeros() -> None:
    out = reshape_as_published(numbered(1, 1, 4), 4, 4)[0, ..., 0]
    assert out.tolist() == [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]


def test_the_reshape_fills_up_to_a_square_on_both_sides() -> None:
    out = reshape_as_published(numbered(1, 1, 14), 4 + 2, 4 + 2)[0, 1:5, 1:5, 0]
    assert out.flatten().tolist() == [0, *range(1, 15), 0]


def test_a_memory_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="12 memory numbers do not fill a 2x4 map evenly"):
        reshape_as_published(numbered(2, 2, 3), 2, 4)


def test_all_cells_of_the_published_memory_are_equal() -> None:
    model = published_resnet50(classes=3, image_size=64, memory_shape=(2, 2, 64))
    ones = torch.ones(1, 64, 2, 2)
    memory = model.first(ones)
    assert torch.equal(memory, memory[:, :, :1, :1].expand_as(memory))
    assert memory[0, :, 0, 0].unique().numel() == 64


def small(preset: str) -> nn.Module:
    torch.manual_seed(0)
    given = {**PRESETS[preset], "memory_shape": (2, 2, 64)}
    return attach(control(3, 64), example_input=torch.zeros(1, 3, 64, 64), **given)[0]


def as_reference(model: nn.Module) -> nn.Module:
    """The block-for-block network with the weights of one from the common builder."""
    reference = published_resnet50(classes=3, image_size=64, memory_shape=(2, 2, 64)).double()
    theirs = model.state_dict()
    own = {}
    for key, value in reference.state_dict().items():
        head, _, rest = key.partition(".")
        index, _, rest_of_index = rest.partition(".")
        if head in ("first", "second"):
            new = theirs[f"memory_bank.{key}"]
        elif head == "stages":
            name = f"stage{int(index) + 2}.{rest_of_index}"
            new = theirs[name]
            if name.endswith(".conv1.weight"):
                new = torch.cat([new, theirs[name.replace("weight", "mem_weight")]], 1)
        elif head == "updates":
            name = f"memory_bank.{key}"
            new = theirs[name]
            if rest_of_index == "convs.0.weight":
                new = torch.cat([new, theirs[f"memory_bank.updates.{index}.mem_weight"]], 1)
        else:
            new = theirs[key]
        own[key] = new.reshape(value.shape)
    reference.load_state_dict(own)
    return reference


def test_the_common_builder_computes_what_the_published_network_computes() -> None:
    model = small("published").double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    reference = as_reference(model)
    x = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x), reference.train(mode)(x))
    loss = [(m.train()(x) ** 2).sum() for m in (model, reference)]
    for one in loss:
        one.backward()
    torch.testing.assert_close(
        model.memory_bank.updates[0].mem_weight.grad,
        reference.updates[0].convs[0].weight.grad[:, -model.memory_bank.updates[0].buckets :],
    )
    torch.testing.assert_close(
        model.memory_bank.second.weight.grad[:, :, None, None], reference.second.weight.grad
    )


@pytest.mark.parametrize("preset", ["published", "described"])
def test_every_parameter_of_a_preset_gets_a_gradient(preset: str) -> None:
    model = small(preset)
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_a_published_memory_copies_and_freezes() -> None:
    model = small("published").eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    given = {**PRESETS["published"], "memory_shape": (2, 2, 64), "arm": "frozen"}
    frozen, _ = attach(control(3, 64), example_input=x, **given)
    bank = frozen.memory_bank
    assert len(bank.updates) == 0
    assert not any(p.requires_grad for p in bank.parameters())


def test_the_arms_of_the_published_comparison_are_what_they_say() -> None:
    with torch.device("meta"):
        given = {"image_shape": (3, 224, 224), "seed": 0, "memory_shape": [7, 7, 1024]}
        arms = {
            arm: build_published(control(), arm=arm, **given)
            for arm in ADDONS["published_memory"].arms
        }
    counts = {arm: keras_count(model)[0] for arm, model in arms.items()}
    assert counts["aim"] == 26_673_380
    assert counts["described"] == 25_996_580
    assert counts["plain_stride2"] == 23_792_612
    assert counts["frozen"] == 23_792_612 + 388_352 + 2_099_200
    strides = {arm: model.conv1.stride[0] for arm, model in arms.items()}
    assert strides == {
        "aim": 1, "aim_stride2": 2, "plain_stride2": 2, "described": 1, "frozen": 1,
    }  # fmt: skip


def test_the_published_arms_differ_four_times_in_compute() -> None:
    with torch.device("meta"):  # the method's figures, for 120 classes
        nets = [control(120, stem_stride=2), control(120), published_resnet50(classes=120)]
    macs = [count_flops(net, (3, 224, 224), torch.float32) / 2e9 for net in nets]
    assert macs == pytest.approx([3.856, 15.424, 16.632], abs=0.001)


def test_the_published_comparison_refuses_other_backbones() -> None:
    given = {"arm": "aim", "image_shape": (3, 64, 64), "seed": 0, "memory_shape": [2, 2, 64]}
    with pytest.raises(AttachError, match="keras_resnet50 with stem_stride: 1"):
        build_published(control(3, 64, stem_stride=2), **given)
