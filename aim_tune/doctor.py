"""The verb: looks at this machine and says what to do before a search says it less kindly.

Each check gives one finding; none repairs or writes anything. torch and the like are imported in a
process of their own, so that an installation that crashes at import is a finding, too. Starts light.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError

if TYPE_CHECKING:
    from aim_tune.spec.study import Resources, Study

OLDEST_PYTHON = (3, 11)
IMPORT_S = 180
"""Longest time that torch may take to be imported, seconds (a cold network disk needs a minute)."""
ANSWER_S = 4
"""How long an MLflow server may take to answer, seconds."""
TIGHT_GB, FULL_GB = 5.0, 1.0
"""Free disk space below which a note is made; below which a search would soon fail."""
SMALL_SHM_GB = 0.5
"""Shared memory below which Ray falls back to the disk, which is slow."""

LOOK_AT_TORCH = """
import json, torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda,
    "cards": [[c.name, c.total_memory / 2**30] for c in cards],
}))
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found."""

    level: Literal["ok", "note", "fault"]
    """note: works, but worth knowing. fault: a search would fail."""
    what: str
    found: str
    advice: str = ""
    """What to do; "" where nothing is to be done."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.doctor",
        description="Checks Python, packages, torch and its torchvision, GPU, Ray's shared memory, the "
        "MLflow store, the data of a study and the disk, and says what to do. Writes nothing; takes about "
        "10 seconds.",
        epilog="Exit codes: 0 a search can run, 2 something is in its way.",
    )
    p.add_argument(
        "study",
        nargs="?",
        type=Path,
        metavar="STUDY",
        help="study that shall run here: its data and what a trial asks for are looked at (quick start)",
    )
    p.add_argument(
        "--out", type=Path, default=Path("results"), help="where results will go (results)"
    )
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store (sqlite:///OUT/mlflow.db; also MLFLOW_TRACKING_URI)",
    )
    p.add_argument("--json", action="store_true", help="print the findings as JSON")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    findings = []
    for finding in examine(args.study, args.out, args.tracking_uri):
        findings.append(finding)
        if not args.json:
            print(_line(finding), flush=True)
    faults = sum(f.level == "fault" for f in findings)
    if args.json:
        print(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        print(_end(faults))
    return EXIT_BAD_INPUT if faults else EXIT_DONE


def examine(study: Path | None, out: Path, tracking_uri: str | None) -> Iterator[Finding]:
    """All findings, as they are made."""
    yield check_python(sys.version_info[:3])
    yield from check_packages()
    seen = look_at_torch()
    yield check_torch(seen)
    yield check_gpu(seen, nvidia=shutil.which("nvidia-smi") is not None)
    yield check_cpu()
    yield check_shared_memory(Path("/dev/shm"))
    yield check_store(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "", out)
    if "error" not in seen:
        yield from check_study(study, seen)
    yield check_disk(_existing(out))


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether Python is new enough."""
    text = ".".join(map(str, version))
    if version < OLDEST_PYTHON:
        advice = "make the environment with a newer one: PYTHON=python3.12 make test"
        return Finding(level="fault", what="Python", found=f"{text}, 3.11 is needed", advice=advice)
    return Finding(level="ok", what="Python", found=f"{text} ({sys.executable})")


def check_packages() -> Iterator[Finding]:
    """Whether every package is there in a version that was declared; one finding where all are."""
    try:
        from packaging.requirements import Requirement

        lines = importlib.metadata.requires("aim-tune") or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        advice = "install it: pip install -c constraints.txt -e ."
        yield Finding(
            level="fault", what="packages", found="aim-tune is not installed", advice=advice
        )
        return
    wanted = [
        r for r in map(Requirement, lines) if not r.marker or r.marker.evaluate({"extra": ""})
    ]
    wrong = [
        (r, found) for r in wanted if not r.specifier.contains(found := _version(r.name) or "0")
    ]
    for requirement, found in wrong:
        text = "is missing" if found == "0" else f"is {found}"
        yield Finding(
            level="fault",
            what="packages",
            found=f"{requirement.name} {text}, {requirement.specifier} is needed",
            advice=f"pip install -c constraints.txt '{requirement.name}{requirement.specifier}'",
        )
    if not wrong:
        shown = ", ".join(f"{n} {_version(n)}" for n in ("ray", "optuna", "mlflow", "numpy"))
        yield Finding(level="ok", what="packages", found=f"{len(wanted)} as declared: {shown}")


def look_at_torch() -> dict[str, Any]:
    """What torch says of itself and of the GPUs; {"error": last line} where it cannot be imported."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", LOOK_AT_TORCH], capture_output=True, text=True, timeout=IMPORT_S
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not imported within {IMPORT_S} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1] if lines else f"ended with {done.returncode}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def check_torch(seen: Mapping[str, Any]) -> Finding:
    """Whether torch and torchvision are a pair that works."""
    if "error" in seen:
        installed = f"torch {_version('torch')}, torchvision {_version('torchvision')}"
        return Finding(
            level="fault",
            what="torch",
            found=f"{installed}: {seen['error']}",
            advice="they must be a pair: pip install --force-reinstall -c constraints.txt torch torchvision",
        )
    return Finding(
        level="ok", what="torch", found=f"{seen['torch']} with torchvision {seen['torchvision']}"
    )


def check_gpu(seen: Mapping[str, Any], *, nvidia: bool) -> Finding:
    """Which GPUs torch can use; `nvidia`: whether the machine has NVIDIA's tools."""
    cards = [f"{name}, {gib:.0f} GiB" for name, gib in seen.get("cards", ())]
    if cards:
        return Finding(level="ok", what="GPU", found="; ".join(cards))
    if nvidia and "error" not in seen:
        why = "is a CPU build" if not seen.get("cuda") else f"was built for CUDA {seen['cuda']}"
        return Finding(
            level="note",
            what="GPU",
            found=f"the machine has NVIDIA's tools, but torch sees no card; it {why}",
            advice="see `nvidia-smi`; install a torch for its driver (pytorch.org), or use the CPU",
        )
    return Finding(
        level="ok", what="GPU", found="none; studies with resources.gpu: 0 run on the CPU"
    )


def check_cpu() -> Finding:
    """Cores that this process may use: as many trials run at once with resources.cpu: 1."""
    cores = _cores()
    return Finding(level="ok", what="CPU", found=f"{cores} core{'s' * (cores > 1)} for trials")


def check_shared_memory(folder: Path) -> Finding:
    """Whether Ray has shared memory to pass objects through."""
    if not folder.is_dir():
        return Finding(level="ok", what="Ray", found="shared memory is not used on this system")
    free = shutil.disk_usage(folder).free / 2**30
    if free < SMALL_SHM_GB:
        return Finding(
            level="note",
            what="Ray",
            found=f"{free:.2f} GiB of shared memory",
            advice="in a container: start it with --shm-size=1g; or search with --engine in_process",
        )
    return Finding(level="ok", what="Ray", found=f"{free:.1f} GiB of shared memory")


def check_store(uri: str, out: Path) -> Finding:
    """Whether the MLflow store answers, or can be made."""
    if uri.startswith(("http://", "https://")):
        return _check_server(uri)
    if uri and not uri.startswith("sqlite"):
        return Finding(
            level="ok", what="MLflow", found="a store that is tried when the search starts"
        )
    path = Path(uri.partition(":///")[2]) if uri else out.resolve() / "mlflow.db"
    place = path if path.exists() else _existing(path.parent)
    if not os.access(place, os.W_OK):
        return Finding(
            level="fault",
            what="MLflow",
            found=f"{place} cannot be written",
            advice="name another --out or --tracking-uri, or search with --tracking off",
        )
    return Finding(
        level="ok", what="MLflow", found=f"{path}" + ("" if path.exists() else " (will be made)")
    )


def _check_server(uri: str) -> Finding:
    address = uri.rstrip("/").rpartition("@")
    scheme = uri.partition("://")[0]
    bare = f"{scheme}://{address[2]}" if address[1] else address[2]
    try:
        urllib.request.urlopen(f"{bare}/health", timeout=ANSWER_S).close()
    except urllib.error.HTTPError:
        pass  # any answer counts: a proxy in front of MLflow may know no /health
    except (OSError, ValueError) as error:
        return Finding(
            level="fault",
            what="MLflow",
            found=f"no answer from {bare}: {error}",
            advice="start the server, correct the address, or search with --tracking optional",
        )
    return Finding(level="ok", what="MLflow", found=f"{bare} answers")


def check_study(study: Path | None, seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether a study can be read, its data are there, and this machine has what it asks for."""
    from aim_tune.data.source import check_data
    from aim_tune.search import quick_start
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    try:
        loaded, catalog = load_study(study or quick_start(), HOUSE)
        yield check_resources(loaded.name, loaded.resources, seen, _cores())
        yield from check_compile(loaded)
        info = check_data(loaded.data, catalog)
    except UserError as error:
        advice = (
            "correct the study or put the files there; `--set data.KEY=VALUE` changes one setting"
        )
        yield Finding(level="fault", what="data", found=str(error), advice=advice)
        return
    counts = f"{info.train} training, {info.val} validation, {info.test} sealed test images"
    yield Finding(level="ok", what="data", found=f"{info.name} of {loaded.name}: {counts}")


def check_resources(
    name: str, resources: Resources, seen: Mapping[str, Any], cores: int
) -> Finding:
    """Whether one trial of the study fits on this machine, and how many at a time."""
    cards, gpu, cpu = len(seen.get("cards", ())), resources.gpu, resources.cpu
    asked = f"{name} asks for {cpu:g} CPU" + (f" and {gpu:g} GPU" if gpu else "") + " a trial"
    if gpu > cards:
        fewer = f"--set resources.gpu={cards}, or " if cards else ""
        return Finding(
            level="fault",
            what="study",
            found=f"{asked}; torch sees {cards or 'no'} card{'s' * (cards != 1)} here",
            advice=f"{fewer}search on a cluster (--address auto)"
            + ("" if fewer else ", or on the CPU, slowly: --set resources.gpu=0"),
        )
    slots = min(int(cores // cpu), int(cards / gpu) if gpu else cores)
    if slots < 1:
        return Finding(
            level="fault",
            what="study",
            found=f"{asked}; there {'is' if cores == 1 else 'are'} {cores} here",
            advice=f"--set resources.cpu={cores}, or search on a cluster (--address auto)",
        )
    return Finding(level="ok", what="study", found=f"{asked}: {slots} at a time here")


def check_compile(study: Study) -> Iterator[Finding]:
    """Whether torch.compile has a compiler; nothing where the study does not compile."""
    from aim_tune.training.compiler import compiles, missing_compiler

    if not compiles(study):
        return
    missing = missing_compiler(study.resources.gpu > 0)
    if missing is None:
        yield Finding(level="ok", what="compile", found="what recipe.compile needs is there")
        return
    what, advice = missing
    advice = f"{advice}, or --set recipe.compile=false"
    yield Finding(level="fault", what="compile", found=what, advice=advice)


def check_disk(folder: Path) -> Finding:
    """Whether there is room for ledgers, checkpoints and MLflow."""
    free = shutil.disk_usage(folder).free / 1e9
    found = f"{free:.1f} GB free at {folder}"
    if free >= TIGHT_GB:
        return Finding(level="ok", what="disk", found=found)
    advice = "free some, or let --out name another disk"
    return Finding(
        level="fault" if free < FULL_GB else "note", what="disk", found=found, advice=advice
    )


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.resolve()
    return next(p for p in (folder, *folder.parents) if p.is_dir())


def _cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(finding: Finding) -> str:
    advice = f"\n{'':<17} do: {finding.advice}" if finding.advice else ""
    return f"{finding.level:<6} {finding.what:<10} {finding.found}{advice}"


def _end(faults: int) -> str:
    if not faults:
        return "\nA search can run here: python -m aim_tune.search"
    return f"\n{faults} thing{'s are' if faults > 1 else ' is'} in the way of a search."


if __name__ == "__main__":
    sys.exit(main())
