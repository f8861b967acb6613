"""The drawing that cannot go stale: who may import whom, read from the source without importing it.

Three rules: a part imports only parts above it in ORDER; each heavy library has its homes; no import
hides in a function except in the verbs (after argument parsing) and in the Ray trial body.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "aim_tune"

ORDER = [
    "errors", "storage", "spec", "cluster_rules", "ledger", "ledger_copy", "registry", "stats", "addons",
    "models", "data", "tables", "training", "arms", "matching", "twin", "gpu_probe", "artifacts", "tracking",
    "reporting", "protocol", "engine", "retraining", "verbs",
]  # fmt: skip
VERBS = {
    "describe",
    "options",
    "launch",  # wires, for `search` and `aim_tune.run`
    "planning",  # `search --dry-run`
    "search",
    "report",
    "export",
    "retrain",
    "predict",
    "api",  # `aim_tune.run` and `aim_tune.load`
    "track",
    "doctor",
    "cluster",
    "__main__",
}
SIBLINGS = {"addons", "models", "data"}  # nouns that do not know each other

HOMES = {
    "ray": {"engine/ray_tune.py", "engine/nodes.py"},
    "optuna": {"protocol/"},
    "mlflow": {"tracking/"},
    "matplotlib": {"reporting/"},
    "pandas": {"api.py"},
    "yaml": {"spec/"},
    "torch": {
        "addons/",
        "models/",
        "data/",
        "training/",
        "arms.py",
        "matching.py",
        "twin.py",
        "gpu_probe.py",
        "artifacts/",
        "retrain.py",
        "retraining/",
        "predict.py",
        "describe.py",
    },
    "torchvision": {"models/", "data/"},
    "sklearn": {"data/"},
    "rich": {"reporting/"},
    "jsonschema": {"cluster_rules.py"},
    "fsspec": {"storage.py"},
}
TORCH_FREE = [
    "__init__.py", "errors.py", "storage.py", "ledger/", "ledger_copy.py", "tables.py", "spec/", "stats/",
    "tracking/", "reporting/", "protocol/", "artifacts/config.py", "artifacts/description.py",
    "artifacts/files.py", "artifacts/card.py", "artifacts/record.py", "addons/__init__.py",
    "models/__init__.py", "data/__init__.py",
]  # fmt: skip
LATE_IMPORTS_ALLOWED = {f"{v}.py" for v in VERBS} | {"engine/ray_tune.py", "__init__.py"}
SEALED_ALLOWED = {"launch.py", "retraining/folder.py", "data/sealed.py"}  # who may read test labels

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part_of(relative: str) -> str:
    head = relative.split("/")[0].removesuffix(".py")
    return "verbs" if head in VERBS else head


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, inside a function) for every import outside `if TYPE_CHECKING`."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", inside
            for alias in node.names:  # `from aim_tune import spec` names a part
                yield f"{node.module}.{alias.name}", inside
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text()), False)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_part_imports_only_parts_before_it(path: Path) -> None:
    relative = name_of(path)
    if relative == "__init__.py":
        return
    own = part_of(relative)
    assert own in ORDER, f"{relative}: add its part to ORDER"
    for module, _ in imports_of(path):
        if module == "aim_tune":
            continue  # judged by the imported name, which follows
        if not module.startswith("aim_tune."):
            continue
        other = part_of("/".join(module.split(".")[1:]))
        if other not in ORDER:
            assert module == "aim_tune.__version__", (
                f"{relative} imports the package root: {module}"
            )
            continue
        assert ORDER.index(other) <= ORDER.index(own), f"{relative} ({own}) imports {module}"
        if own in SIBLINGS and other in SIBLINGS:
            assert own == other, f"{relative} ({own}) must not know {other}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_stay_in_their_homes(path: Path) -> None:
    relative = name_of(path)
    for module, _ in imports_of(path):
        homes = HOMES.get(module.split(".")[0])
        if homes is not None:
            assert any(relative.startswith(h) for h in homes), f"{relative} imports {module}"
            if module.split(".")[0] == "torch":
                assert not any(relative == p or (p.endswith("/") and relative.startswith(p))
                               for p in TORCH_FREE), f"{relative} imports torch"  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_hides_in_a_function(path: Path) -> None:
    if name_of(path) in LATE_IMPORTS_ALLOWED:
        return
    hidden = [module for module, inside in imports_of(path) if inside]
    assert not hidden, f"{name_of(path)}: imports inside functions: {hidden}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_driver_can_reach_test_labels(path: Path) -> None:
    if name_of(path) in SEALED_ALLOWED:
        return
    assert not any(m.startswith("aim_tune.data.sealed") for m, _ in imports_of(path))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_opens_by_saying_what_it_knows(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name_of(path)} has no opening text"


def test_the_folder_mlflow_cannot_shadow_the_library() -> None:
    assert not list((ROOT / "mlflow").rglob("*.py"))


def test_no_part_takes_a_standard_library_name() -> None:
    import sys

    assert not {part_of(name_of(p)) for p in FILES} & set(sys.stdlib_module_names)
