"""Attaches a memory to one network of each torchvision family, to timm's and others', and checks what
`attach` promises.

Writes docs/attach_matrix.md: networks x checks, every cell `yes`, or a number that points to the reason
below the table. Random weights, CPU; about 15 minutes on 2 cores (--only NAME... renews some rows and keeps
the others, --missing fills in what the page lacks, --quick leaves out captures and processes). The
captures use the backend "eager": they show that there is one graph, not what a compiler makes of it. Exit
code 1 if a check fails.

    python benchmarks/attach_matrix.py
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import pickle
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aim_tune.addons.memory import AttachReport, attach, baseline_state_dict, detach
from aim_tune.models import BACKBONES

TARGET = Path(__file__).resolve().parents[1] / "docs" / "attach_matrix.md"
MEMORY = (2, 2, 32)
SIDE = 64
SIDES = {"inception_v3": 96, "alexnet": 96, "maxvit_t": 224}
"""Pixels, where 64 are too few."""
ONE_SIZE = {"mlp", "vit_b_16", "maxvit_t", "torch_encoder", "timm_vit_tiny_patch16_224",
            "timm_mixer_s32_224"}  # fmt: skip
"""Networks that take one image size only, with or without a memory."""
NETS = (
    "mlp", "small_cnn", "resnet20", "alexnet", "vgg16_bn", "squeezenet1_1", "resnet18", "resnet50",
    "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0",
    "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16", "googlenet", "efficientnet_b0",
    "inception_v3", "densenet121", "maxvit_t", "torch_encoder", "timm_resnet10t",
    "timm_convnext_atto", "timm_vit_tiny_patch16_224", "timm_mobilenetv3_small_050",
    "timm_mixer_s32_224", "timm_swin_tiny_patch4_window7_224",
)  # fmt: skip
OWN_MEMORY = {
    "mlp": (1, 1, 64),
    "small_cnn": (2, 2, 16),
    "resnet20": (4, 4, 16),
    "timm_mobilenetv3_small_050": (2, 2, 16),
}
TIMM = {
    "timm_vit_tiny_patch16_224": {"img_size": 64},
    "timm_mixer_s32_224": {"img_size": 64},
    "timm_swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "strict_img_size": False,
    },
}
"""Arguments of timm's builder."""


class TorchEncoder(nn.Module):
    """A network of one's own: patches of 8 x 8 pixels, torch's transformer encoder, mean, classes."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 8, 8)
        self.place = nn.Parameter(torch.zeros(1, (side // 8) ** 2, 64))
        layer = nn.TransformerEncoderLayer(64, 4, 128, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(tokens + self.place).mean(1))


FACTS = ("px", "readers", "updates", "parameters")
"""Columns between the name and the checks: pixels, readers, update points, added parameters."""


class NotApplicable(Exception):
    """A check that the network without a memory fails as well, or that cannot run here."""


@dataclass(frozen=True)
class Case:
    """A network before and after, in eval mode unless a check says otherwise."""

    name: str
    plain: nn.Module
    model: nn.Module
    report: AttachReport
    images: Tensor

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The network with reads that are not zero, exported."""
        return torch.export.export(shaken(self.model), (self.images,))


def backbone(name: str, side: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "torch_encoder":
        return TorchEncoder(side)
    if name.startswith("timm_"):
        settings = TIMM.get(name, {})
        return timm.create_model(name.removeprefix("timm_"), num_classes=10, **settings)
    row = BACKBONES[name]
    return row.load()(classes=10, image_shape=(3, side, side), **row.fixed)


def make_case(name: str) -> Case:
    side = SIDES.get(name, SIDE)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    shape = OWN_MEMORY.get(name, MEMORY)
    plain = backbone(name, side)
    model, report = attach(copy.deepcopy(plain), memory_shape=shape, example_input=images)
    return Case(name, plain.eval(), model.eval(), report, images)


def shaken(model: nn.Module) -> nn.Module:
    """A copy whose reads are not zero any more, nor weights that start at zero (the head of a ViT, the last
    batch norm of timm's residual blocks)."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("mem_weight") or (key.endswith("weight") and not p.any()):
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def starts_equal(case: Case) -> None:
    with torch.no_grad():
        assert torch.equal(case.model(case.images), case.plain(case.images))


def takes_state_dict(case: Case) -> None:
    model = copy.deepcopy(case.model)
    other = case.plain.state_dict()
    missing, unexpected = model.load_state_dict(other, strict=False)
    assert not unexpected
    assert all(k.startswith("memory_bank.") or k.endswith("mem_weight") for k in missing)
    assert list(baseline_state_dict(model)) == list(other)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer, weights_only=True))


def copies(case: Case) -> None:
    model = shaken(case.model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert torch.equal(twin(case.images), model(case.images))
            twin.memory_bank.memory.add_(1)
            assert not torch.equal(twin(case.images), model(case.images))


def detaches(case: Case) -> None:
    plain = detach(copy.deepcopy(case.model))
    assert list(plain.state_dict()) == list(case.plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(case.images), case.plain(case.images))


def takes_other_sizes(case: Case) -> None:
    side = case.images.shape[-1] + 32
    if case.name in ONE_SIZE:
        raise NotApplicable("the network without a memory takes one image size only")
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert shaken(case.model)(images).isfinite().all()


def trains_everything(case: Case) -> None:
    model = shaken(case.model).train()
    (model(case.images) ** 2).sum().backward()
    untouched = [k for k, p in model.named_parameters() if p.grad is None]
    plain = copy.deepcopy(case.plain).train()
    (plain(case.images) ** 2).sum().backward()
    dead = [k for k, p in plain.named_parameters() if p.grad is None]
    assert untouched == dead, f"no gradient: {untouched[:3]}"
    assert model.memory_bank.memory.grad.abs().sum() > 0


def judges_images_alone(case: Case) -> None:
    model = shaken(case.model)
    with torch.no_grad():
        alone = torch.cat([model(one[None]) for one in case.images])
        torch.testing.assert_close(alone, model(case.images), rtol=1e-3, atol=1e-4)


def follows_to(case: Case) -> None:
    model = shaken(case.model).double()
    with torch.no_grad():
        assert model(case.images.double()).dtype == torch.float64
    assert {t.device.type for t in model.to("meta").state_dict().values()} == {"meta"}


def captures_fullgraph(case: Case) -> None:
    model = shaken(case.model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(case.images), model(case.images))


def exports(case: Case) -> None:
    with torch.no_grad():
        expected = shaken(case.model)(case.images)
        torch.testing.assert_close(case.program.module()(case.images), expected)


def runs_in_onnx(case: Case) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise NotApplicable(f"{package} was not installed")
    import onnxruntime

    model = shaken(case.model)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        torch.onnx.export(case.program, (case.images,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (out,) = session.run(None, {session.get_inputs()[0].name: case.images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(out), model(case.images), rtol=1e-3, atol=1e-4)


class Pair:
    """Two processes (gloo) that train networks as one; started at the first use, and after a failure."""

    def __init__(self) -> None:
        self.workers: list[Any] = []

    def start(self) -> None:
        context = mp.get_context("spawn")
        place = tempfile.mkstemp()[1]
        Path(place).unlink()
        self.names = [context.SimpleQueue() for _ in range(2)]
        self.results = context.Queue()
        self.workers = [
            context.Process(target=work, args=(i, place, self.names[i], self.results), daemon=True)
            for i in range(2)
        ]
        for worker in self.workers:
            worker.start()

    def train(self, name: str) -> None:
        """Raises what went wrong in one of the processes."""
        if not self.workers:
            self.start()
        for names in self.names:
            names.put(name)
        answers = [self.results.get(timeout=300) for _ in self.workers]
        if any(error for error, _ in answers):
            self.stop()
            raise RuntimeError(next(error for error, _ in answers if error))
        assert answers[0][1] == answers[1][1], "the processes ended with other weights"

    def stop(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        self.workers = []


def work(rank: int, place: str, names: Any, results: Any) -> None:
    """One process of a Pair."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    while True:
        name = names.get()
        try:
            results.put(("", trained_sum(make_case(name), rank)))
        except Exception as error:
            results.put((f"{type(error).__name__}: {error}", 0.0))


def trained_sum(case: Case, rank: int) -> float:
    """Sum of the weights after two steps on images of this process's own."""
    model = DistributedDataParallel(shaken(case.model).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        optimizer.zero_grad()
        (model(torch.randn(case.images.shape, generator=generator)) ** 2).mean().backward()
        optimizer.step()
    return sum(p.detach().double().sum().item() for p in model.parameters())


PAIR = Pair()


def trains_in_two_processes(case: Case) -> None:
    PAIR.train(case.name)


CHECKS: dict[str, tuple[Callable[[Case], None], str]] = {
    "start": (starts_equal, "zero init gives the baseline's output exactly"),
    "state": (
        takes_state_dict,
        "the baseline's state_dict loads and comes back; its own round-trips",
    ),
    "copy": (copies, "deepcopy and pickle compute the same and own their memory"),
    "detach": (detaches, "detach gives the baseline back exactly"),
    "sizes": (takes_other_sizes, "another image size runs after attaching (32 pixels more)"),
    "train": (
        trains_everything,
        "backward reaches every parameter that it reaches without a memory",
    ),
    "alone": (judges_images_alone, "in evaluation an image's output does not depend on its batch"),
    "to": (follows_to, "`.double()` and `.to(device)` move the memory as well"),
    "graph": (
        captures_fullgraph,
        "torch.compile(fullgraph=True) captures one graph (backend eager)",
    ),
    "export": (exports, "torch.export gives a program with the same output"),
    "onnx": (runs_in_onnx, "the ONNX file gives the same output in onnxruntime"),
    "ddp": (trains_in_two_processes, "two processes (gloo) train it and end with equal weights"),
}
LONG = ("graph", "export", "onnx", "ddp")


def outcome(check: Callable[[Case], None], case: Case) -> str:
    """yes, or the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(case)
    except NotApplicable as reason:
        return f"not applicable: {reason}"
    except Exception as error:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"fails: {type(error).__name__}: {text[:160]}"
    return "yes"


def facts(case: Case) -> dict[str, str]:
    """What was attached."""
    report = case.report
    more = 100 * (report.parameters[1] / report.parameters[0] - 1)
    counts = [case.images.shape[-1], len(report.readers), len(report.update_points)]
    return dict(zip(FACTS, [*map(str, counts), f"{more:+.1f} %"], strict=True))


def table(rows: dict[str, dict[str, str]], checks: list[str]) -> str:
    """The page of rows: network -> column -> cell; a check that was not made is said to be so."""
    cells_of = {
        name: [rows[name].get(column, "not checked") for column in (*FACTS, *checks)]
        for name in sorted(rows)
    }
    outcomes = (c for cells in cells_of.values() for c in cells[len(FACTS) :])
    reasons = list(dict.fromkeys(o for o in outcomes if o != "yes"))
    own = ", ".join(f"{name} {_times(shape)}" for name, shape in OWN_MEMORY.items())
    head = ["network", *FACTS, *checks]
    lines = [
        "| " + " | ".join(head) + " |",
        "| --- " + "| ---: " * 4 + "| --- " * len(checks) + "|",
    ]
    for name, row in cells_of.items():
        cells = [c if c not in reasons else f"({reasons.index(c) + 1})" for c in row]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    meaning = [f"- **{name}**: {CHECKS[name][1]}" for name in checks]
    given = [f"{i}. {reason}" for i, reason in enumerate(reasons, start=1)]
    return "\n".join(
        [
            "# What a memory can be attached to",
            "",
            f"Made by `python benchmarks/attach_matrix.py` with torch {torch.__version__}, torchvision "
            f"{torchvision.__version__} and timm {timm.__version__} on a CPU, random weights, 10 classes, "
            f"preset `fast` with a memory of {_times(MEMORY)} ({own}). Do not edit by hand.",
            "",
            *lines,
            "",
            *meaning,
            *(["", "Not `yes`:", "", *given] if given else []),
            "",
        ]
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def kept_rows(page: Path) -> dict[str, dict[str, str]]:
    """Network -> column -> cell of an earlier page; none if there is no such page."""
    if not page.exists():
        return {}
    text = page.read_text()
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    head, _, *lines = (
        [c.strip() for c in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    )
    return {
        name: {
            column: reasons[c.strip("()")] if c.startswith("(") else c
            for column, c in zip(head[1:], cells, strict=True)
        }
        for name, *cells in lines
        if name in NETS
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(NETS), choices=NETS, metavar="NAME")
    parser.add_argument("--missing", action="store_true", help="only what the page does not have")
    parser.add_argument("--quick", action="store_true", help="without graph captures and processes")
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: c for n, (c, _) in CHECKS.items() if not (args.quick and n in LONG)}
    rows = kept_rows(args.out) if args.missing or args.only != list(NETS) else {}
    for name in args.only:
        start, row = time.perf_counter(), rows.get(name, {}) if args.missing else {}
        todo = [c for c in chosen if row.get(c, "not checked") == "not checked"]
        if todo:
            case = make_case(name)
            rows[name] = {**row, **facts(case), **{c: outcome(chosen[c], case) for c in todo}}
            args.out.write_text(
                table(rows, list(chosen))
            )  # after each: an interrupt keeps the rest
            bad = {c: rows[name][c] for c in todo if rows[name][c] != "yes"}
            print(f"{name}: {time.perf_counter() - start:.0f} s {bad or ''}", flush=True)
    PAIR.stop()
    return int(any(cell.startswith("fails") for row in rows.values() for cell in row.values()))


if __name__ == "__main__":
    sys.exit(main())
