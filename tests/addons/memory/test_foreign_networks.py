"""Memory for networks that are nobody's in this house: torch's transformer, users' own, timm's."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor, nn

from aim_tune.addons.memory import AttachReport, attach, baseline_state_dict, detach
from aim_tune.errors import AttachError

torch.set_num_threads(1)


class Transformer(nn.Module):
    """Tokens [B, 12] to classes by torch's own encoder."""

    def __init__(self, layers: int = 8, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if not self.batch_first:
            return self.head(self.encoder(x.transpose(0, 1)).mean(0))
        return self.head(self.encoder(x).mean(1))


TOKENS = torch.arange(24).reshape(2, 12) % 20


def with_memory(net: nn.Module, **settings) -> tuple[nn.Module, AttachReport]:
    given = {"memory_shape": (4, 1, 6), "init": "normal", "example_input": TOKENS, **settings}
    return attach(net.eval(), **given)


def test_a_transformer_encoder_reads_in_its_feed_forward_layers() -> None:
    _, report = with_memory(Transformer())
    assert report.readers == tuple(f"encoder.layers.{i}.linear1" for i in range(8))
    assert report.update_points == tuple(f"encoder.layers.{i}" for i in (1, 3, 5))
    assert dict(report.skipped)["encoder.layers.0.self_attn.out_proj"].startswith("does not run")
    _, report = with_memory(Transformer(), update_every=3)
    assert report.update_points == ("encoder.layers.2", "encoder.layers.5")


def test_its_fast_path_for_evaluation_does_not_pass_the_memory_by() -> None:
    model, _ = with_memory(Transformer())
    with_grad = model(TOKENS)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), with_grad)
    plain = detach(copy.deepcopy(model))
    assert not any(m._forward_pre_hooks for m in plain.modules())
    with torch.no_grad():
        assert not torch.allclose(plain(TOKENS), with_grad, atol=1e-3)


def test_a_transformer_trains_copies_and_gives_its_baseline_back() -> None:
    plain = Transformer()
    model, _ = with_memory(copy.deepcopy(plain), init="zero")
    torch.testing.assert_close(model(TOKENS), plain(TOKENS))
    assert list(baseline_state_dict(model)) == list(plain.state_dict())
    model, _ = with_memory(plain)
    model.train()(TOKENS).sum().backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(TOKENS), model(TOKENS))


def test_a_transformer_with_the_batch_in_second_place_reads_in_its_head_only_and_says_why() -> None:
    _, report = with_memory(Transformer(batch_first=False), memory_shape=(1, 1, 8), write="none")
    assert report.readers == ("head",)
    assert "batch_first=False" in dict(report.skipped)["encoder.layers.0.linear1"]


def test_an_mlp_of_ones_own_reads_the_numbers_as_a_vector() -> None:
    net = nn.Sequential(
        nn.Linear(20, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 32),
        nn.ReLU(), nn.Linear(32, 3),
    )  # fmt: skip
    x = torch.randn(4, 20)
    before = net.eval()(x)
    _, report = attach(net, memory_shape=(2, 2, 2), example_input=x)
    assert report.readers == ("0", "4", "6")
    assert [r.buckets for r in report.plan.readers] == [8, 8, 8]
    assert torch.equal(net(x), before)
    net.train()(x).sum().backward()
    assert net.memory_bank.updates[0].out.weight.grad is not None


TIMM = {
    # name -> (settings, px, readers, updates)
    "resnet10t": ({}, 64, 4, 3),
    "convnext_atto": ({}, 64, 12, 3),
    "vit_tiny_patch16_224": ({"img_size": 64, "depth": 4}, 64, 8, 3),
    "mobilenetv3_small_050": ({}, 64, 11, 3),
    "mixer_s32_224": ({"img_size": 64}, 64, 8, 3),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_start_as_they_are_train_and_come_back(name: str) -> None:
    settings, side, readers, updates = TIMM[name]
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False, num_classes=10, **settings).eval()
    plain, x = copy.deepcopy(net), torch.randn(2, 3, side, side)
    model, report = attach(net, memory_shape=(2, 2, 16), example_input=x)
    assert (len(report.readers), len(report.update_points)) == (readers, updates)
    with torch.no_grad():
        assert torch.equal(model(x), plain(x))
    assert list(baseline_state_dict(model)) == list(plain.state_dict())
    model.train()(x).sum().backward()
    dead = [k for k, p in model.named_parameters() if p.grad is None]
    plain.train()(x).sum().backward()
    assert dead == [k for k, p in plain.named_parameters() if p.grad is None]


def test_timms_checkpointing_is_refused() -> None:
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=4)
    net.set_grad_checkpointing(True)
    given = {"memory_shape": (2, 2, 16), "example_input": torch.zeros(1, 3, 64, 64)}
    with pytest.raises(
        AttachError, match=r"activation checkpointing .* runs blocks.0.attn.qkv and"
    ):
        attach(net, **given)
    net.set_grad_checkpointing(False)
    attach(net, **given)
