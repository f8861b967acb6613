"""Attaches a memory to one network of each torchvision family and checks what `attach` promises.

Writes docs/attach_matrix.md: networks x checks, every cell `yes`, or a number that points to the reason
below the table. Random weights, CPU; about 10 minutes on 2 cores (--only NAME... renews some rows and keeps
the others, --quick leaves out the graph captures). The captures use the backend "eager": they show that
there is one graph, not what a compiler makes of it. Exit code 1 if a check fails.

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
from functools import cached_property
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from aim_tune.addons.memory import AttachReport, attach, baseline_state_dict, detach
from aim_tune.models import BACKBONES

TARGET = Path(__file__).resolve().parents[1] / "docs" / "attach_matrix.md"
MEMORY = (2, 2, 32)
SIDE = 64
SIDES = {"inception_v3": 96, "alexnet": 96}
"""Pixels, where 64 are too few."""
OTHER = {"vit_b_16": 0}
"""Another side to run at after attaching; 0: the network itself takes one size only."""
NETS = (
    "mlp", "small_cnn", "resnet20", "alexnet", "vgg16_bn", "squeezenet1_1", "resnet18", "resnet50",
    "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0",
    "regnet_y_400mf", "convnext_tiny", "swin_t", "vit_b_16", "googlenet", "efficientnet_b0",
    "inception_v3", "densenet121",
)  # fmt: skip
SMALLER_MEMORY = {"mlp": (1, 1, 64), "small_cnn": (2, 2, 16), "resnet20": (4, 4, 16)}


FACTS = 4
"""Columns between the name and the checks."""


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
    row = BACKBONES[name]
    return row.load()(classes=10, image_shape=(3, side, side), **row.fixed)


def make_case(name: str) -> Case:
    side = SIDES.get(name, SIDE)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    shape = SMALLER_MEMORY.get(name, MEMORY)
    plain = backbone(name, side)
    model, report = attach(copy.deepcopy(plain), memory_shape=shape, example_input=images)
    return Case(name, plain.eval(), model.eval(), report, images)


def shaken(model: nn.Module) -> nn.Module:
    """A copy whose reads are not zero any more, nor weights that start at zero (the head of a ViT)."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith("mem_weight") or (p.dim() > 1 and not p.any()):
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
    side = OTHER.get(case.name, case.images.shape[-1] + 32)
    if case.name == "mlp" or not side:
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
}
CAPTURES = ("graph", "export", "onnx")


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


def facts(case: Case) -> list[str]:
    """What was attached: pixels, readers, updates, added parameters."""
    report = case.report
    more = 100 * (report.parameters[1] / report.parameters[0] - 1)
    counts = [case.images.shape[-1], len(report.readers), len(report.update_points)]
    return [*map(str, counts), f"{more:+.1f} %"]


def table(rows: dict[str, list[str]], checks: list[str]) -> str:
    """The page of rows: network -> facts, then the outcome of each check."""
    reasons = list(dict.fromkeys(o for row in rows.values() for o in row[FACTS:] if o != "yes"))
    head = ["network", "px", "readers", "updates", "parameters", *checks]
    lines = [
        "| " + " | ".join(head) + " |",
        "| --- " + "| ---: " * 4 + "| --- " * len(checks) + "|",
    ]
    for name in sorted(rows):
        cells = [c if c not in reasons else f"({reasons.index(c) + 1})" for c in rows[name]]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    meaning = [f"- **{name}**: {CHECKS[name][1]}" for name in checks]
    given = [f"{i}. {reason}" for i, reason in enumerate(reasons, start=1)]
    return "\n".join(
        [
            "# What a memory can be attached to",
            "",
            f"Made by `python benchmarks/attach_matrix.py` with torch {torch.__version__} and torchvision "
            f"{torchvision.__version__} on a CPU, random weights, 10 classes, preset `fast` with a memory "
            f"of {'x'.join(map(str, MEMORY))} (mlp 1x1x64, small_cnn 2x2x16, resnet20 4x4x16). Do not edit "
            "by hand.",
            "",
            *lines,
            "",
            *meaning,
            *(["", "Not `yes`:", "", *given] if given else []),
            "",
        ]
    )


def kept_rows(page: Path, checks: list[str]) -> dict[str, list[str]]:
    """The rows of an earlier page with the same checks; none if there is no such page."""
    if not page.exists():
        return {}
    text = page.read_text()
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    head, _, *lines = (
        [c.strip() for c in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    )
    if head[1 + FACTS :] != checks:
        return {}
    return {
        name: [reasons[c.strip("()")] if c.startswith("(") else c for c in cells]
        for name, *cells in lines
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=list(NETS), choices=NETS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="without the graph captures")
    parser.add_argument("--out", type=Path, default=TARGET)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {n: c for n, (c, _) in CHECKS.items() if not (args.quick and n in CAPTURES)}
    rows = kept_rows(args.out, list(chosen)) if args.only != list(NETS) else {}
    for name in args.only:
        start = time.perf_counter()
        case = make_case(name)
        results = {check: outcome(run, case) for check, run in chosen.items()}
        rows[name] = [*facts(case), *results.values()]
        bad = {k: v for k, v in results.items() if v != "yes"}
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(table(rows, list(chosen)))  # after each: an interrupt keeps the rest
        print(f"{name}: {time.perf_counter() - start:.0f} s {bad or ''}", flush=True)
    return int(any(cell.startswith("fails") for row in rows.values() for cell in row))


if __name__ == "__main__":
    sys.exit(main())
