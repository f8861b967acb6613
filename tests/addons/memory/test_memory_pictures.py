"""Pictures show the memory that the network has, and taking them changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aim_tune.addons.memory import PRESETS, MemoryAlbum, attach
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES

torch.set_num_threads(1)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def attached(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    row = BACKBONES["resnet8"]
    net = row.load()(classes=10, image_shape=(3, 16, 16), width=8, **row.fixed)
    given = {"memory_shape": (4, 4, 4), "update_width": 4, "init": "normal", **settings}
    return attach(net, example_input=images(), **given)[0]


def trained(model: nn.Module) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model.train()(images()) ** 2).sum().backward()
    optimizer.step()
    return model


def test_start_and_end_are_the_memory_before_and_after_training() -> None:
    model = attached()
    before = model.memory_bank.memory.detach().clone()
    album = MemoryAlbum(model)
    shown = album.finish(trained(model), images(), [1, 2, 3, 4])
    after = model.memory_bank.memory.detach()
    order = list(shown.channels)
    torch.testing.assert_close(torch.from_numpy(shown.start), before[0, order])
    torch.testing.assert_close(torch.from_numpy(shown.end), after[0, order])
    assert shown.figures()["change"] > 0
    assert shown.labels == (1, 2, 3, 4)


def test_written_is_what_the_last_reader_sees() -> None:
    model = trained(attached())
    read: list[Tensor] = []
    model.stage3[0].conv1.register_forward_hook(lambda m, a, o: read.append(m.cell.current()))
    shown = MemoryAlbum(model).finish(model, images())
    expected = read[0].detach()[:, list(shown.channels)]
    torch.testing.assert_close(torch.from_numpy(shown.written), expected)
    assert shown.figures()["between_images"] > 0


def test_a_memory_that_images_share_or_nothing_writes_is_shown_as_that() -> None:
    shared, still = trained(attached(write="batch")), trained(attached(arm="no_update"))
    assert MemoryAlbum(shared).finish(shared, images()).written.shape[0] == 1
    assert MemoryAlbum(still).finish(still, images()).written.shape[0] == 0


def test_the_published_memory_has_pictures_too() -> None:
    model = attached(**{**PRESETS["described"], "memory_shape": (2, 2, 8)})
    shown = MemoryAlbum(model).finish(model, images())
    assert shown.start.shape == (8, 2, 2)
    assert (shown.start == shown.start[:, :1, :1]).all()  # its cells are equal


@pytest.mark.parametrize("mode", [True, False])
def test_taking_pictures_changes_nothing(mode: bool) -> None:
    model = attached(write="batch", carry="ema").train(mode)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    MemoryAlbum(model).finish(model, images())
    assert model.training is mode
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(model._forward_hooks) == 1


def test_a_network_without_memory_has_no_pictures() -> None:
    with pytest.raises(AttachError, match="has no memory attached"):
        MemoryAlbum(nn.Linear(2, 2))
