"""Step time of the memory arms against their baseline, interleaved step by step in one process.

Measures forward + backward (no optimizer): process CPU time on a CPU, CUDA events on a GPU; the ratio
is the median over rounds of time(arm) / time(baseline) within one round, with its quartiles. `naive`
is the same network with memory concatenated to inputs and weights instead of split reads. Also: bytes
that autograd keeps for backward, and FLOPs.

    python benchmarks/step_time.py                                   resnet8 width 8, 16 px, about 20 s
    python benchmarks/step_time.py --net resnet18 --image 64 --batch 16 --memory 2 2 64 --rounds 20
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from aim_tune.addons.dry_run import count_flops
from aim_tune.addons.memory import attach
from aim_tune.addons.memory.readers import ReadConv2d, ReadLinear
from aim_tune.models import BACKBONES

CLASSES = 10
ARMS: dict[str, dict[str, Any]] = {
    "static": {"arm": "no_update"},
    "frozen": {"arm": "frozen"},
    "sample": {"write": "sample"},
    "batch": {"write": "batch"},
}


class NaiveConv2d(ReadConv2d):
    """Reads by concatenation, as published."""

    def forward(self, x_BFHW: Tensor) -> Tensor:
        memory = self.cell.on_grid(x_BFHW.shape[2], x_BFHW.shape[3], self.mem_weight.shape[1])
        both = torch.cat([x_BFHW, memory.expand(len(x_BFHW), -1, -1, -1)], 1)
        return self._conv_forward(both, torch.cat([self.weight, self.mem_weight], 1), self.bias)


class NaiveLinear(ReadLinear):
    """Reads by concatenation, as published."""

    def forward(self, x: Tensor) -> Tensor:
        memory = self._memory_at(x).expand(*x.shape[:-1], -1)
        weight = torch.cat([self.weight, self.mem_weight], 1)
        return F.linear(torch.cat([x, memory], -1), weight, self.bias)


def make_naive(model: nn.Module) -> nn.Module:
    """The same function, with reads by concatenation."""
    for module in model.modules():
        if type(module) is ReadConv2d:
            module.__class__ = NaiveConv2d
        elif type(module) is ReadLinear:
            module.__class__ = NaiveLinear
    return model


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Unique bytes that autograd keeps for backward, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model(images)
    del out
    return sum(kept.values())


def build_nets(args: argparse.Namespace) -> dict[str, nn.Module]:
    shape = (args.channels, args.image, args.image)
    entry = BACKBONES[args.net]
    settings = dict(pair.split("=") for pair in args.setting)
    settings = {k: int(v) if v.isdigit() else v for k, v in settings.items()}

    def backbone() -> nn.Module:
        torch.manual_seed(0)
        return entry.load()(classes=CLASSES, image_shape=shape, **entry.fixed, **settings)

    nets = {"baseline": backbone()}
    for name in args.arms:
        common = {
            "memory_shape": args.memory,
            "example_input": torch.zeros(1, *shape),
            "readers": args.readers,
            "update_width": args.update_width,
            "kernel_size": args.kernel_size,
        }
        nets[name] = attach(backbone(), **common, **ARMS[name])[0]
        if args.naive:
            nets[f"{name} naive"] = make_naive(attach(backbone(), **common, **ARMS[name])[0])
    return nets


def step(model: nn.Module, images: Tensor, labels: Tensor, *, amp: bool) -> float:
    """Seconds of one forward and backward pass."""
    for parameter in model.parameters():
        parameter.grad = None
    gpu = images.is_cuda
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter() if gpu else time.process_time()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    if gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() if gpu else time.process_time()) - start


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    nets = {n: m.to(device, memory_format=layout) for n, m in build_nets(args).items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, args.channels, args.image, args.image, generator=generator)
    images = images.to(device, memory_format=layout)
    labels = torch.randint(CLASSES, (args.batch,), generator=generator).to(device)
    saved = {name: saved_bytes(model, images) for name, model in nets.items()}
    flops = {
        n: count_flops(m, (args.channels, args.image, args.image), images.dtype)
        for n, m in nets.items()
    }
    if args.compile:
        nets = {name: torch.compile(model, fullgraph=True) for name, model in nets.items()}
    times: dict[str, list[float]] = {name: [] for name in nets}
    order = list(nets)
    for round_ in range(-args.warmup, args.rounds):
        for name in order[round_ % len(order) :] + order[: round_ % len(order)]:
            seconds = [step(nets[name], images, labels, amp=args.amp) for _ in range(args.inner)]
            if round_ >= 0:
                times[name].append(statistics.median(seconds))
    rows = []
    for name in nets:
        ratios = [t / b for t, b in zip(times[name], times["baseline"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append(
            {
                "arm": name,
                "step_ms": 1e3 * statistics.median(times[name]),
                "ratio": middle,
                "ratio_quartiles": [low, high],
                "saved_ratio": saved[name] / saved["baseline"],
                "flops_ratio": flops[name] / flops["baseline"],
            }
        )
    return {
        "setting": {k: v for k, v in vars(args).items() if k != "json"},
        "n_rounds": args.rounds,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else _cpu(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "rows": rows,
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", default="resnet8", choices=sorted(BACKBONES), metavar="NAME")
    parser.add_argument("--setting", nargs="*", default=None, metavar="KEY=VALUE")
    parser.add_argument("--image", type=int, default=16, help="side, pixels")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory", type=int, nargs=3, default=[4, 4, 16])
    parser.add_argument("--readers", default="block", choices=["block", "all"])
    parser.add_argument("--update-width", type=int, default=16)
    parser.add_argument("--kernel-size", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=["static", "sample", "batch"], choices=ARMS)
    parser.add_argument("--naive", action="store_true", help="also measure concatenation")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--inner", type=int, default=5, help="steps of an arm in a row, per round")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.setting is None:
        args.setting = ["width=8"] if args.net == "resnet8" else []
    return args


def main() -> None:
    args = parse()
    result = measure(args)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{args.net}, {args.image} px, batch {args.batch}, memory {args.memory}, {args.readers}")
    print(
        f"{result['device']}, {args.threads} thread(s), torch {result['torch']}, n = {args.rounds}"
    )
    print(f"{'arm':16} {'step ms':>8} {'ratio':>6} {'quartiles':>12} {'saved':>6} {'FLOPs':>6}")
    for row in result["rows"]:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['arm']:16} {row['step_ms']:8.2f} {row['ratio']:6.3f} {low:6.3f}-{high:5.3f} "
            f"{row['saved_ratio']:6.3f} {row['flops_ratio']:6.3f}"
        )


if __name__ == "__main__":
    main()
