"""Step time and saved activations of networks with memory, against their baseline and plain concatenation.

Every network of a case runs in one process, interleaved round by round; a ratio is the median over the
rounds of time(arm) / time(baseline) within a round, with its quartiles. `naive` is the same network with
the memory concatenated to inputs and weights. A step is forward and backward, without optimizer: CPU time
of the process with one thread, wall-clock time with more, CUDA events on a GPU. `saved`: bytes that
autograd keeps for backward, parameters not counted, as a ratio. Exit code 1 if a target is missed.

    python benchmarks/step_time.py                       all cases of this machine, about 10 minutes
    python benchmarks/step_time.py --quick               a smoke test, 20 seconds
    python benchmarks/step_time.py --only resnet18 --rounds 40 --json step_time.json
    python benchmarks/step_time.py --only resnet18 --channels-last --amp --threads 2 --compile
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from aim_tune.addons.dry_run import count_flops
from aim_tune.addons.memory import attach
from aim_tune.addons.memory.bank import form_of
from aim_tune.addons.memory.readers import ReadConv2d, ReadLinear
from aim_tune.models import BACKBONES

CLASSES = 10
ARMS: dict[str, dict[str, Any]] = {
    "static": {"arm": "no_update"},
    "sample": {"write": "sample"},
    "batch": {"write": "batch"},
}
"""static: learned, never rewritten; sample: rewritten for each image; batch: one memory for the batch."""

SAVED_TARGET = 1.03


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network under one way of running it."""

    name: str
    net: str
    image: int
    """Side in pixels."""
    batch: int
    memory: tuple[int, int, int]
    settings: Mapping[str, int] = field(default_factory=dict)
    readers: str = "block"
    naive: tuple[str, ...] = tuple(ARMS)
    """Arms that also run by concatenation."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Arm -> largest ratio of step times to the baseline."""
    saved_target: bool = False
    rounds: int = 20
    inner: int = 1
    """Steps in a row of each network within a round, of which the median counts."""
    device: str = "cpu"
    threads: int = 1
    compiled: str = ""
    """A mode of torch.compile, or not compiled."""
    channels_last: bool = False
    amp: bool = False
    """bfloat16 autocast."""


_RESNET18 = Case(
    name="resnet18", net="resnet18", image=64, batch=16, memory=(2, 2, 64), saved_target=True,
    targets={"static": 1.03, "sample": 1.12},
)  # fmt: skip
_RESNET50 = Case(
    name="resnet50", net="resnet50", image=64, batch=8, memory=(2, 2, 64), saved_target=True,
    targets={"sample": 1.07, "batch": 1.05}, rounds=14,
)  # fmt: skip
_VGG16 = Case(
    name="vgg16_bn", net="vgg16_bn", image=64, batch=8, memory=(2, 2, 64), saved_target=True,
    targets={"batch": 1.05}, rounds=10,
)  # fmt: skip
_RESNET20 = Case(
    name="resnet20", net="resnet20", image=32, batch=32, memory=(4, 4, 16), saved_target=True
)
_RESNET8 = Case(name="resnet8", net="resnet8", image=32, batch=32, memory=(4, 4, 16), inner=3)
_QUICK = replace(_RESNET8, name="resnet8 16px", image=16, settings={"width": 8}, inner=5)

CPU_CASES = (
    _QUICK,
    _RESNET8,
    replace(
        _RESNET8, name="resnet8 compiled", compiled="default", naive=("sample",),
        targets=dict.fromkeys(ARMS, 1.06),
    ),
    _RESNET20,
    _RESNET18,
    replace(_RESNET18, name="resnet18 channels_last", channels_last=True, naive=(), targets={}),
    replace(_RESNET18, name="resnet18 bf16", amp=True, naive=(), targets={}, saved_target=False),
    replace(_RESNET18, name="resnet18 2 threads", threads=2, naive=(), targets={}),
    _RESNET50,
    _VGG16,
)  # fmt: skip
"""About 8 minutes on one core of 2026."""

_GPU: dict[str, Any] = {"device": "cuda", "amp": True, "channels_last": True, "saved_target": False}
GPU_CASES = (
    replace(
        _RESNET20, name="resnet20 graphs", **_GPU, batch=128, compiled="reduce-overhead", inner=20,
        targets={"sample": 1.15, "static": 1.15, "batch": 1.15}, naive=("sample",),
    ),
    replace(_RESNET20, name="resnet20 eager", **_GPU, batch=128, inner=20, naive=("sample",)),
    replace(
        _RESNET50, name="resnet50 224px compiled", **_GPU, image=224, batch=256, memory=(7, 7, 64),
        compiled="default", inner=3, targets=dict.fromkeys(ARMS, 1.03), naive=("sample",),
    ),
    replace(
        _RESNET50, name="resnet50 224px eager", **_GPU, image=224, batch=256, memory=(7, 7, 64),
        inner=3, targets={}, naive=("sample",),
    ),
)  # fmt: skip


class NaiveConv2d(ReadConv2d):
    """Reads by concatenation, as published."""

    def forward(self, x_BFHW: Tensor) -> Tensor:
        channels = self.mem_weight.shape[1]
        memory = self.cell.on_grid(x_BFHW.shape[2], x_BFHW.shape[3], channels, form_of(x_BFHW))
        both = torch.cat([x_BFHW, memory.expand(len(x_BFHW), -1, -1, -1)], 1)
        return self._conv_forward(both, torch.cat([self.weight, self.mem_weight], 1), self.bias)


class NaiveLinear(ReadLinear):
    """Reads by concatenation, as published."""

    def forward(self, x: Tensor) -> Tensor:
        memory = self._memory_at(x).expand(*x.shape[:-1], -1)
        weight = torch.cat([self.weight, self.mem_weight], 1)
        return F.linear(torch.cat([x, memory], -1), weight, self.bias)


def make_naive(model: nn.Module) -> nn.Module:
    """The same network, with reads by concatenation."""
    for module in model.modules():
        if type(module) is ReadConv2d:
            module.__class__ = NaiveConv2d
        elif type(module) is ReadLinear:
            module.__class__ = NaiveLinear
    return model


def build_nets(case: Case) -> dict[str, nn.Module]:
    """Baseline, arms and their naive twins, from the same weights, on the device of the case."""
    shape = (3, case.image, case.image)
    entry = BACKBONES[case.net]

    def backbone() -> nn.Module:
        torch.manual_seed(0)
        return entry.load()(classes=CLASSES, image_shape=shape, **entry.fixed, **case.settings)

    def with_memory(arm: str) -> nn.Module:
        example, common = torch.zeros(1, *shape), {"readers": case.readers}
        given = {"memory_shape": case.memory, "example_input": example, **common, **ARMS[arm]}
        return attach(backbone(), **given)[0]

    nets = {"baseline": backbone(), **{arm: with_memory(arm) for arm in ARMS}}
    nets |= {f"{arm} naive": make_naive(with_memory(arm)) for arm in case.naive}
    form = torch.channels_last if case.channels_last else torch.contiguous_format
    return {n: m.to(device=case.device, memory_format=form) for n, m in nets.items()}  # type: ignore[call-overload]


def batch_of(case: Case) -> tuple[Tensor, Tensor]:
    """Random images and labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, case.image, case.image, generator=generator)
    labels = torch.randint(CLASSES, (case.batch,), generator=generator)
    form = torch.channels_last if case.channels_last else torch.contiguous_format
    return images.to(device=case.device, memory_format=form), labels.to(case.device)


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for backward, each piece of memory once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # alive until the end, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(images)
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)


def seconds(case: Case, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Of one step, the median or (GPU) the mean of `inner` steps in a row."""

    def step() -> None:
        model.zero_grad(set_to_none=True)
        if case.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(case.device, torch.bfloat16, enabled=case.amp):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()

    if case.device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(case.inner):
            step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3 / case.inner
    clock = time.process_time if case.threads == 1 else time.perf_counter
    times = []
    for _ in range(case.inner):
        before = clock()
        step()
        times.append(clock() - before)
    return statistics.median(times)


def measure(case: Case) -> dict[str, Any]:
    """Everything about one case, as plain values."""
    torch.set_num_threads(case.threads)
    nets, (images, labels) = build_nets(case), batch_of(case)
    saved = {name: saved_bytes(model, images) for name, model in nets.items()}
    flops = {n: count_flops(m, (3, case.image, case.image), images.dtype) for n, m in nets.items()}
    if case.compiled:
        torch._dynamo.reset()
        nets = {
            n: torch.compile(m, fullgraph=True, mode=case.compiled)  # type: ignore[misc]
            for n, m in nets.items()
        }
    times: dict[str, list[float]] = {name: [] for name in nets}
    order = list(nets)
    warm_up = 3
    for round_ in range(-warm_up, case.rounds):
        first = round_ % len(order)
        for name in order[first:] + order[:first]:
            one = seconds(case, nets[name], images, labels)
            if round_ >= 0:
                times[name].append(one)
    rows = [_row(case, name, times, saved, flops) for name in nets]
    return {"case": asdict(case), "n_rounds": case.rounds, "rows": rows}


def _row(
    case: Case,
    name: str,
    times: Mapping[str, Sequence[float]],
    saved: Mapping[str, int],
    flops: Mapping[str, int],
) -> dict[str, Any]:
    ratios = [t / b for t, b in zip(times[name], times["baseline"], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    target = case.targets.get(name)
    saved_ratio = saved[name] / saved["baseline"]
    saved_target = SAVED_TARGET if case.saved_target and name in ARMS else None
    return {
        "arm": name,
        "step_ms": 1e3 * statistics.median(times[name]),
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "ratio_of_minima": min(times[name]) / min(times["baseline"]),
        "target": target,
        "saved_ratio": saved_ratio,
        "saved_target": saved_target,
        "flops_ratio": flops[name] / flops["baseline"],
        "passed": (target is None or middle <= target)
        and (saved_target is None or saved_ratio <= saved_target),
    }


def describe(result: Mapping[str, Any]) -> str:
    """A case as a Markdown table."""
    case = result["case"]
    shape = "x".join(map(str, case["memory"]))
    way = [
        f"{case['image']} px, batch {case['batch']}, memory {shape}, {case['readers']} readers",
        f"{case['device']}, {case['threads']} thread(s), {case['compiled'] or 'eager'}",
        *(["channels_last"] if case["channels_last"] else []),
        *(["bf16 autocast"] if case["amp"] else []),
        f"n = {result['n_rounds']} rounds of {case['inner']} step(s)",
    ]
    lines = [
        f"**{case['name']}**: {', '.join(way)}",
        "",
        "| arm | step ms | ratio | quartiles | target | | naive | saved | naive saved | FLOPs |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    rows = {row["arm"]: row for row in result["rows"]}
    lines += [
        _line(row, rows.get(f"{name} naive")) for name, row in rows.items() if " " not in name
    ]
    return "\n".join(lines)


def _line(row: Mapping[str, Any], naive: Mapping[str, Any] | None) -> str:
    low, high = row["ratio_quartiles"]
    targets = row["target"] or row["saved_target"]
    cells = [
        row["arm"],
        f"{row['step_ms']:.2f}",
        f"{row['ratio']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{row['target']:.2f}" if row["target"] else "",
        ("pass" if row["passed"] else "**FAIL**") if targets else "",
        f"{naive['ratio']:.3f}" if naive else "",
        f"{row['saved_ratio']:.3f}",
        f"{naive['saved_ratio']:.2f}" if naive else "",
        f"{row['flops_ratio']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def machine() -> dict[str, str]:
    """Where this was measured."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": _cpu(),
        "gpu": gpu,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def choose(args: argparse.Namespace) -> list[Case]:
    """The cases that were asked for, with what the options change."""
    cases = list(CPU_CASES + GPU_CASES if torch.cuda.is_available() else CPU_CASES)
    if args.quick:
        cases = [replace(_QUICK, rounds=3, inner=1, naive=("sample",))]
    if args.only:
        cases = [c for c in cases if any(word in c.name for word in args.only)]
    changes: dict[str, Any] = {}
    if args.rounds:
        changes["rounds"] = args.rounds
    if args.threads:
        changes["threads"] = args.threads
    if args.compile:
        changes["compiled"] = "default"
    if args.channels_last:
        changes["channels_last"] = True
    if args.amp:
        changes["amp"] = True
    return [replace(c, **changes) for c in cases]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small case, 3 rounds")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="cases whose name contains it")
    parser.add_argument("--rounds", type=int, help="at least 2")
    parser.add_argument("--threads", type=int, help="instead of what a case says")
    parser.add_argument("--compile", action="store_true", help="torch.compile(fullgraph=True)")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table per case as it is finished; 1 if a target was missed."""
    args = parse(argv)
    cases = choose(args)
    if not cases:
        names = ", ".join(c.name for c in CPU_CASES + GPU_CASES)
        print(f"no case contains {args.only}; there are: {names}", file=sys.stderr)
        return 2
    where = machine()
    print(", ".join(f"{k} {v}" for k, v in where.items()), flush=True)
    results = []
    for i, case in enumerate(cases, 1):
        print(f"[{i}/{len(cases)}] {case.name}...", file=sys.stderr, flush=True)
        results.append(measure(case))
        print(f"\n{describe(results[-1])}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")
    missed = [
        (r["case"]["name"], row["arm"]) for r in results for row in r["rows"] if not row["passed"]
    ]
    print("\nall targets met" if not missed else f"\nmissed: {missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
