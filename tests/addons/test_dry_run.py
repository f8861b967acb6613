"""The dry run sees order, shapes, in-place changes and FLOPs, and leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from aim_tune.addons.dry_run import BATCH, count_flops, dry_run
from aim_tune.errors import AttachError

torch.set_num_threads(1)


class Twice(nn.Module):
    """Runs one layer twice and changes the first result in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.layer(x))
        first.relu_()
        return self.layer(first)


class NeedsValues(nn.Module):
    """Control flow that meta tensors cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) if x.sum() > -1e9 else x


def test_runs_are_recorded_in_order_with_shapes() -> None:
    trace = dry_run(Twice(), torch.zeros(1, 4))
    assert len(trace.calls["layer"]) == 2
    assert "unused" not in trace.calls
    assert trace.once("norm").output_shape == (BATCH, 4)
    assert trace.calls["layer"][0].end < trace.once("norm").start < trace.calls["layer"][1].start


def test_a_later_change_in_place_is_seen() -> None:
    trace = dry_run(Twice(), torch.zeros(1, 4))
    assert trace.once("norm").late_change
    assert not trace.calls["layer"][0].late_change


def test_flops_of_a_known_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    expected = 2 * (8 * 3 * 9 * 16) + 2 * (8 * 16 * 10)
    assert count_flops(net, (3, 4, 4), torch.float32) == expected


@pytest.mark.parametrize("net", [Twice(), NeedsValues()])
def test_the_network_is_left_as_it_was(net: nn.Module) -> None:
    net.train()
    net.norm.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    dry_run(net, torch.ones(2, 4))
    assert net.training
    assert not net.norm.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_control_flow_on_values_is_run_for_real() -> None:
    assert dry_run(NeedsValues(), torch.ones(2, 4)).once("norm").output_shape == (BATCH, 4)


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(AttachError, match=r"does not run on an input of shape \[3, 5\]"):
        dry_run(Twice(), torch.zeros(1, 5))
