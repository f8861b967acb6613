"""Where memory is read and rewritten: rules on small networks made for them, and real networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_tune.addons.memory import AttachReport, attach
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def conv(before: int, after: int, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, **{"padding": 1, **settings})


def report_of(model: nn.Module, **settings: Any) -> AttachReport:
    given = {"memory_shape": (2, 2, 2), "example_input": torch.zeros(1, 3, 8, 8), **settings}
    return attach(model, **given)[1]


def test_block_readers_are_the_first_readable_layer_of_each_block() -> None:
    net = nn.Sequential(
        conv(3, 8),
        Block(conv(8, 8, groups=8), conv(8, 8), conv(8, 8)),
        Block(conv(8, 8), conv(8, 8)),
        nn.Flatten(),
        nn.Linear(8 * 64, 4),
    )
    assert report_of(net).readers == ("1.body.1", "2.body.0")


def test_all_readers_are_every_readable_layer() -> None:
    net = nn.Sequential(conv(3, 8), Block(conv(8, 8), conv(8, 8)), Block(conv(8, 8), conv(8, 8)))
    assert len(report_of(net, readers="all").readers) == 5


def test_a_network_without_blocks_reads_everywhere() -> None:
    report = report_of(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8)))
    assert report.readers == ("0", "2")
    assert report.update_points == ("1",)


def test_a_wrapper_around_the_network_is_not_a_block() -> None:
    report = report_of(nn.Sequential(Block(conv(3, 8), conv(8, 8), conv(8, 8))))
    assert report.readers == ("0.body.0", "0.body.1", "0.body.2")


def test_memory_is_rewritten_at_the_end_of_each_resolution() -> None:
    net = nn.Sequential(
        nn.Sequential(Block(conv(3, 8), conv(8, 8)), Block(conv(8, 8), conv(8, 8))),
        nn.Sequential(Block(conv(8, 8, stride=2), conv(8, 8)), Block(conv(8, 8), conv(8, 8))),
    )
    report = report_of(net)
    assert report.update_points == ("0",)
    assert report.dropped == (("1", "no layer reads memory after it"),)


def test_a_network_of_one_resolution_is_rewritten_after_each_quarter() -> None:
    net = nn.Sequential(*(Block(conv(3, 3), conv(3, 3)) for _ in range(8)))
    report = report_of(net, memory_shape=(2, 2, 2))
    assert report.update_points == ("1", "3", "5")


def test_layers_that_cannot_read_are_reported_with_the_reason() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = conv(3, 8)
            self.twice = conv(8, 8)
            self.deep = conv(8, 8, groups=8)
            self.circular = conv(8, 8, padding_mode="circular")
            self.never = conv(8, 8)
            self.last = conv(8, 8)
            self.own = type("MyConv2d", (nn.Conv2d,), {})(8, 8, 1)
            self.squeeze = nn.Conv2d(8, 8, 1)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.circular(self.deep(self.twice(self.twice(self.first(x)))))
            x = self.own(self.last(x)).mean((2, 3), keepdim=True)
            return self.fc(self.squeeze(x).flatten(1))

    report = report_of(Net())
    assert report.readers == ("first", "last")
    reasons = dict(report.skipped)
    assert reasons["twice"] == "runs 2 times in one pass"
    assert reasons["deep"] == "grouped convolution"
    assert reasons["circular"] == "padding_mode is circular, not zeros"
    assert reasons["never"].startswith("does not run as a module")
    assert reasons["own"].startswith("is a MyConv2d")
    assert reasons["squeeze"] == reasons["fc"] == "its input has one position"


def test_features_that_are_changed_in_place_later_still_train() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8))
            self.b = conv(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu_(self.a(x)))

    net = Late()
    report = report_of(net, init="normal")
    assert report.update_points == ("a",)
    assert report.plan.updates[0].late_change
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert net.memory_bank.memory.grad.abs().sum() > 0


def three_blocks() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), Block(conv(8, 8), conv(8, 8)), Block(conv(8, 8), conv(8, 8)),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def test_readers_can_be_named_in_any_order() -> None:
    report = report_of(three_blocks(), readers=["2.body.1", "0"])
    assert report.readers == ("0", "2.body.1")
    assert report.update_points == ("1",)  # the end of the first half of the only resolution


@pytest.mark.parametrize(
    ("readers", "text"),
    [
        (["1.body.0", "1.body.3"], r"unknown layer in readers '1.body.3'; did you mean '1.body"),
        (["5"], "readers: 5 cannot read memory: its input has one position. Leave it out"),
        ([], "readers is an empty list. Name layers, or use block or all"),
        ("blocks", "unknown readers 'blocks'; did you mean 'block'"),
    ],
)
def test_readers_that_are_not_there_or_cannot_read_are_refused(readers: Any, text: str) -> None:
    with pytest.raises(AttachError, match=text):
        report_of(three_blocks(), readers=readers)


def test_updates_can_come_after_every_nth_block() -> None:
    def points(every: int | None) -> tuple[str, ...]:
        net = nn.Sequential(*(Block(conv(3, 3), conv(3, 3)) for _ in range(8)))
        return report_of(net, memory_shape=(2, 2, 2), update_every=every).update_points

    assert points(None) == ("1", "3", "5")
    assert points(1) == tuple(str(i) for i in range(7))
    assert points(3) == ("2", "5")
    with pytest.raises(AttachError, match="update_every is 0; it must be 1 or more"):
        points(0)


def test_update_every_counts_within_a_resolution() -> None:
    row = BACKBONES["resnet20"]
    given = {"memory_shape": (4, 4, 4), "example_input": torch.zeros(1, 3, 16, 16)}
    net = row.load()(classes=10, image_shape=(3, 16, 16), width=8, **row.fixed)
    points = attach(net, update_every=2, **given)[1].update_points
    assert points == ("stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1")


class Windows(nn.Module):
    """A map cut into four windows for a Linear layer, and seen with channels as positions by another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.end = conv(3, 6), conv(6, 6)
        self.windowed, self.mixing = nn.Linear(6, 6), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        cut = x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1)
        y = self.windowed(cut.flatten(3, 4).flatten(1, 2))  # [B, 4 windows, 16, 6]
        mixed = self.mixing(x.flatten(2)).unflatten(2, (8, 8))
        return self.end(mixed) + y.mean()


def test_layers_that_see_features_elsewhere_do_not_read() -> None:
    report = report_of(Windows())
    assert report.readers == ("stem", "end")
    reasons = dict(report.skipped)
    assert reasons["windowed"].startswith("its input is cut into windows")
    assert reasons["mixing"].startswith("its input is transposed")


class Windowed(nn.Module):
    """Cuts its map into windows of 4 x 4 that go into the batch: one window on a 4 x 4 map."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[-1] // 4
        cut = x.unflatten(3, (side, 4)).unflatten(2, (side, 4)).permute(0, 2, 4, 3, 5, 1)
        cut = self.inner(cut.flatten(1, 3).reshape(len(x) * side * side, 16, 6))
        return x + cut.mean()


def test_a_layer_whose_like_sees_windows_elsewhere_does_not_read_where_there_is_but_one() -> None:
    net = nn.Sequential(conv(3, 6), Windowed(), nn.MaxPool2d(2), conv(6, 6), Windowed(), conv(6, 6))
    report = report_of(net, init="normal")
    assert report.readers == ("0", "3", "5")
    reasons = dict(report.skipped)
    assert reasons["1.inner"].startswith("its input is not a batch")
    assert reasons["4.inner"].startswith("its like elsewhere in this network see windows")
    assert net(torch.randn(2, 3, 16, 16)).isfinite().all()  # another size: more windows


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_networks_that_only_pad_otherwise_are_refused_with_the_reason(mode: str) -> None:
    net = nn.Sequential(conv(3, 8, padding_mode=mode), conv(8, 8, padding_mode=mode))
    with pytest.raises(AttachError, match=f"can read memory .0: padding_mode is {mode}, not zeros"):
        report_of(net)


def test_a_dense_network_reads_all_numbers_as_one_vector() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 4))
    report = report_of(net)
    assert report.plan.memory_shape == (1, 1, 8)
    assert [r.buckets for r in report.plan.readers] == [8, 8]


REAL = {
    "resnet20": ((3, 32, 32), (4, 4, 16), 9, ("stage1", "stage2")),
    "resnet56": ((3, 16, 16), (2, 2, 16), 27, ("stage1", "stage2")),
    "resnet18": ((3, 64, 64), (2, 2, 64), 8, ("layer1", "layer2", "layer3")),
    "resnet34": ((3, 64, 64), (2, 2, 64), 16, ("layer1", "layer2", "layer3")),
    "resnet50": ((3, 64, 64), (2, 2, 64), 16, ("layer1", "layer2", "layer3")),
    "vgg16_bn": (
        (3, 32, 32),
        (2, 2, 16),
        13,
        ("features.5", "features.12", "features.22", "features.32"),
    ),
    "small_cnn": ((1, 16, 16), (4, 4, 16), 4, ("relu1_2",)),
    "mlp": ((1, 8, 8), (2, 2, 4), 3, ("relu1", "relu2")),
    "mobilenet_v3_small": (
        (3, 64, 64),
        (2, 2, 8),
        11,
        ("features.1", "features.3", "features.8"),
    ),
    "densenet121": (
        (3, 64, 64),
        (2, 2, 16),
        58,
        ("features.denseblock1", "features.denseblock2", "features.denseblock3"),
    ),
    "convnext_tiny": ((3, 64, 64), (2, 2, 32), 18, ("features.1", "features.3", "features.5")),
    "vit_b_16": (
        (3, 32, 32),
        (2, 2, 8),
        12,
        tuple(f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks_are_read_and_rewritten_where_expected(name: str) -> None:
    image_shape, memory_shape, readers, updates = REAL[name]
    row = BACKBONES[name]
    with torch.device("meta"):
        model = row.load()(classes=10, image_shape=image_shape, **row.fixed)
        example = torch.empty(1, *image_shape)
        model, report = attach(model, memory_shape=memory_shape, example_input=example)
    assert len(report.readers) == readers
    assert report.update_points == updates
    out = model(torch.empty(2, *image_shape, device="meta"))
    out.sum().backward()
    assert out.shape == (2, 10)
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
def test_real_networks_start_as_the_baseline_and_train(name: str) -> None:
    image_shape, memory_shape, _, _ = REAL[name]
    row = BACKBONES[name]
    torch.manual_seed(0)
    model = row.load()(classes=10, image_shape=image_shape, **row.fixed).eval()
    x = torch.randn(2, *image_shape)
    with torch.no_grad():
        expected = model(x)
        attach(model, memory_shape=memory_shape, example_input=x)
        assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
