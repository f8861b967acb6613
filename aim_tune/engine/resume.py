"""Whether a results folder may be gone on with: what was declared then against what is asked now.

A changed study, data set or code is refused with the differences, because results from before and
after could not be told apart. Only `protocol.blocks` may grow. Other versions of libraries are said,
not refused. Pure but for reading the package's own files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aim_tune.data.info import DataInfo
from aim_tune.errors import ResumeError
from aim_tune.ledger import History
from aim_tune.spec.study import Study
from aim_tune.spec.values import short_hash

if TYPE_CHECKING:
    from aim_tune.protocol.earlier import Earlier

CODE = ("arms.py", "matching.py", "twin.py", "training", "addons", "models", "data", "protocol")
"""Parts of the package that can change a result."""
LIBRARIES = ("aim-tune", "torch", "torchvision", "numpy", "scipy", "optuna", "ray", "mlflow")


@lru_cache(maxsize=1)
def code_hashes() -> dict[str, str]:
    """File -> short SHA-256, for the files that can change a result."""
    package = Path(__file__).resolve().parents[1]
    hashes = {}
    for part in CODE:
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
            hashes[file.relative_to(package).as_posix()] = digest
    return hashes


@lru_cache(maxsize=1)
def code_hash() -> str:
    """One short hash of them all."""
    return short_hash(code_hashes())


def versions() -> dict[str, str]:
    """Python and the libraries that matter."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def declaration(study: Study, info: DataInfo, earlier: Earlier | None = None) -> dict[str, Any]:
    """The first record of a ledger, with all that comes over from an earlier study."""
    return {
        "event": "declared",
        "study": study.to_dict(),
        "study_hash": study.study_hash,
        "code_hash": code_hash(),
        "code": code_hashes(),
        "data_digest": info.digest,
        "versions": versions(),
        "node": platform.node(),
        **({"earlier": earlier.to_dict()} if earlier else {}),
    }


def check_same(history: History, study: Study, info: DataInfo, *, folder: Path) -> None:
    """Raise ResumeError, with every difference, unless `history` is of this study, data and code."""
    assert history.declared is not None
    found = list(_differences(history, study, info))
    if found:
        lines = "\n  ".join(found)
        raise ResumeError(
            f"{folder} holds another study:\n  {lines}\n"
            "Undo the change to go on with it, use --fork to start a new study beside it, or choose "
            "another --out."
        )


def with_declared_sizes(study: Study, history: History) -> Study:
    """The study with the sizes that its budget was found to pay for when it began."""
    assert history.declared is not None
    then = {**history.declared["study"]["protocol"], "blocks": blocks_then(history)}
    sizes = {key: then[key] for key in study.protocol.chosen}
    return replace(study, protocol=replace(study.protocol, **sizes, chosen=()))


def blocks_then(history: History) -> int:
    """Number of blocks the study had when it ran last."""
    assert history.declared is not None
    return history.blocks or history.declared["study"]["protocol"]["blocks"]


def other_versions(history: History) -> list[str]:
    """Libraries whose version has changed since the study began: bits may differ, so say it."""
    assert history.declared is not None
    then, now = history.declared.get("versions", {}), versions()
    return [f"{k} {then[k]} -> {now[k]}" for k in now if k in then and then[k] != now[k]]


def _differences(history: History, study: Study, info: DataInfo) -> Iterator[str]:
    declared = history.declared or {}
    study_then = Study.from_dict(declared["study"])
    then, now = study_then.identity(), study.identity()
    yield from _other_start(then, now, study_then, study)
    then["protocol"]["blocks"] = blocks_then(history)
    if now["protocol"]["blocks"] > then["protocol"]["blocks"]:
        now["protocol"]["blocks"] = then["protocol"]["blocks"]  # may grow
    yield from _changed(flat(then), flat(now))
    if declared["data_digest"] != info.digest:
        yield f"data: the images or labels differ (digest {declared['data_digest']} then, {info.digest} now)"
    for file, text in _pairs(declared["code"], code_hashes()):
        yield f"code: {file} {text}"


def _other_start(
    then: dict[str, Any], now: dict[str, Any], study_then: Study, study: Study
) -> Iterator[str]:
    """What explore went on from, in words; the bare digests are taken out of the identities."""
    both = [value["protocol"]["explore"].pop("warm_start", None) for value in (then, now)]
    if both[0] != both[1]:
        starts = [s.protocol.explore.went_on_from for s in (study_then, study)]
        old, new = (f"{s.said} (digest {s.digest})" if s else "nothing" for s in starts)
        yield f"protocol.explore.warm_start: {old} then, {new} now"


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key, "(not there)"), now.get(key, "(not there)")
        if old != new:
            yield f"{key}: {old} then, {new} now"


def _pairs(then: Mapping[str, str], now: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for file in sorted(then.keys() | now.keys()):
        if then.get(file) != now.get(file):
            yield (
                file,
                "is new" if file not in then else "is gone" if file not in now else "changed",
            )


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            leaves.update(flat(inner, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = inner
    return leaves
