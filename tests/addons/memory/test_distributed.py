"""Memory in a training of two processes (gloo): no unused parameter, the same numbers on both ranks."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from aim_tune.addons.memory import attach
from aim_tune.models import BACKBONES

pytestmark = pytest.mark.slow  # two processes that import torch: 10 to 20 s each test

NETS = {
    "resnet8": ((3, 16, 16), (4, 4, 8)),
    "resnet18": ((3, 64, 64), (2, 2, 32)),
    "mobilenet_v3_small": ((3, 64, 64), (2, 2, 32)),
    "mlp": ((1, 8, 8), (1, 1, 8)),
}


def network(name: str, **settings: Any) -> nn.Module:
    shape, memory = NETS[name]
    torch.manual_seed(0)
    row = BACKBONES[name]
    net = row.load()(classes=10, image_shape=shape, **row.fixed)
    given = {"memory_shape": memory, "example_input": torch.zeros(1, *shape), "init": "normal"}
    return attach(net, **given, **settings)[0]


def train(rank: int, port: int, name: str, settings: dict[str, Any], out: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = DistributedDataParallel(network(name, **settings))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)  # each process its own images
    for _ in range(3):
        optimizer.zero_grad()
        images = torch.randn(4, *NETS[name][0], generator=generator)
        (model(images) ** 2).mean().backward()
        optimizer.step()
    state = model.module.state_dict()
    kept = {k: v for k, v in state.items() if "running" not in k or k.endswith("carried")}
    out.put((rank, {k: v.double().sum().item() for k, v in kept.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet8", {}),
        ("resnet8", {"write": "batch"}),
        ("resnet8", {"carry": "ema"}),
        ("resnet18", {}),
        ("mobilenet_v3_small", {}),
        ("mlp", {}),
    ],
)
def test_two_processes_train_and_stay_equal(name: str, settings: dict[str, Any]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    workers = [
        context.Process(target=train, args=(rank, port, name, settings, out)) for rank in (0, 1)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        assert worker.exitcode == 0
    first, second = (sums for _, sums in sorted(out.get() for _ in workers))
    assert first == second
    if settings.get("carry") == "ema":
        assert first["memory_bank.carried"] != 0
