"""Whether an earlier study may lead the explore stage of a new one, and what of it comes over.

It must ask for the very same search: backbone, data, recipe, domains and explore arms; other code is said,
not refused, as its scores are hints that no claim rests on. A study that has begun holds what came over in
its own ledger: the earlier folder may then be gone, and its trials may have become more, but not others.
Reads ledgers, writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aim_tune.data.info import DataInfo
from aim_tune.engine.resume import CODE, code_hash, flat
from aim_tune.errors import LedgerError, UserError
from aim_tune.ledger import History, read_history
from aim_tune.protocol.earlier import Earlier, recorded_in, taken_from
from aim_tune.spec.study import Study, WarmStart

KEY = "protocol.explore.warm_start"
SAME = ("backbone", "data", "recipe", "shared", "addon")
"""Sections that must be alike in both studies."""


def warm_started(
    study: Study, info: DataInfo, *, own: History | None = None, forked: History | None = None
) -> tuple[Study, Earlier | None]:
    """The study with what comes over in place of the folder it names, and the trials; as it is without one.

    `own` is what the results folder of the study holds already: it is then not judged again. `forked` is
    that of the study it is a fork of, which may lend what it took over. Raises UserError where nothing
    can come over, or from another search, with every difference.
    """
    asked = study.protocol.explore.warm_start
    if asked is None:
        return study, None
    recorded = recorded_in(own)
    if isinstance(asked, WarmStart):
        found = recorded if recorded and recorded.start == asked else _lent(study, info, forked)
        if found is None or found.start != asked:
            raise UserError(
                f"{KEY}: the {asked.said} that this study went on from are in its ledger alone; name the "
                "folder of that study instead, such as results/NAME"
            )
    elif (there := _read(Path(asked), excused=recorded or recorded_in(forked))) is None:
        found = recorded or _lent(study, info, forked)
    else:
        found = _taken(study, there)
        if recorded and found.only([t.position for t in recorded.trials]).start == recorded.start:
            found = recorded  # it has only gone on since
        elif own is None:
            _check(study, info, there, found, Path(asked))
    assert found is not None, "what cannot be read was refused"
    explore = replace(study.protocol.explore, warm_start=found.start)
    return replace(study, protocol=replace(study.protocol, explore=explore)), found


def said(earlier: Earlier) -> str:
    """One line for people, when a study begins."""
    other = earlier.code_hash not in ("", code_hash())
    code = f" It ran with other code ({', '.join(CODE)}): its scores may be of other networks."
    return f"Explore goes on from {earlier.said}.{code if other else ''}"


def _read(folder: Path, excused: Earlier | None) -> History | None:
    """The ledger of a folder; None where it is not to be had and not needed either."""
    ledger = folder / "ledger.jsonl"
    try:
        history = read_history(ledger)
    except (LedgerError, OSError) as error:
        if excused:
            return None
        if isinstance(error, LedgerError) and ledger.is_file():
            raise
        why = getattr(error, "strerror", None) or "no ledger.jsonl"
        raise UserError(
            f"{KEY}: no study can be read in {folder} ({why}). Name the results folder of the earlier "
            "study, relative to the study file or absolute, or remove the key."
        ) from error
    if history.declared is None and excused is None:
        raise UserError(f"{KEY}: the study in {folder} has not begun yet; wait, or remove the key")
    return history if history.declared else None


def _lent(study: Study, info: DataInfo, forked: History | None) -> Earlier | None:
    """What a fork gets from the study it leaves, if that has the same space."""
    found = recorded_in(forked)
    if found and forked:
        _refuse(study, info, forked, f"study {_study_of(forked).name}, which took it over,")
    return found


def _taken(study: Study, there: History) -> Earlier:
    return taken_from(_study_of(there), there, stopped=len(study.protocol.explore.objectives) == 1)


def _study_of(history: History) -> Study:
    assert history.declared is not None
    return Study.from_dict(history.declared["study"])


def _check(study: Study, info: DataInfo, there: History, found: Earlier, folder: Path) -> None:
    """Raise UserError unless something comes over, and from the same search."""
    _refuse(study, info, there, f"study {found.study} in {folder}")
    if not found.planned:
        raise UserError(
            f"{KEY}: study {found.study} in {folder} has no explore stage (protocol.explore.trials is 0): "
            "there is nothing to go on from. Name another one, or remove the key."
        )
    if not found.trials:
        raise UserError(
            f"{KEY}: of the {found.planned} explore trials of study {found.study} in {folder} "
            f"{found.finished} are finished and none has a score. Let it run on first, or remove the key."
        )


def _refuse(study: Study, info: DataInfo, there: History, whose: str) -> None:
    """Raise UserError with every difference between two searches, if there is one."""
    differences = list(_differences(study, info, there))
    if differences:
        lines = "\n  ".join(differences)
        raise UserError(
            f"{KEY}: {whose} made another search:\n  {lines}\n"
            "Its scores would mean something else here. Make this study the same in these keys, name "
            "another earlier study, or remove the key."
        )


def _differences(study: Study, info: DataInfo, there: History) -> Iterator[str]:
    then, now = flat(_search(_study_of(there))), flat(_search(study))
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key, "(not there)"), now.get(key, "(not there)")
        if old != new:
            yield f"{key}: {old} there, {new} here"
    digest = (there.declared or {}).get("data_digest")
    if digest != info.digest:
        yield f"data: the images or labels differ (digest {digest} there, {info.digest} here)"


def _search(study: Study) -> dict[str, Any]:
    """What gives a score its meaning, and what was searched; not how many trials were to be had."""
    value = study.identity()
    arms = study.explore_arms
    overrides: Mapping[str, Any] = value.get("overrides", {})
    return {
        **{key: value[key] for key in SAME if key in value},
        "arms of explore": list(arms),
        "overrides": {arm: own for arm, own in overrides.items() if arm in arms},
        "plugins": {plugin["path"]: plugin["sha256"] for plugin in value["plugins"]},
    }
