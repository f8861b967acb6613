"""The section `protocol` of a study: its keys, and its sizes where they are not written out one by one.

Blocks, twins and confirm come from where they are written, else from `looks` and the short form `plan`,
else from the budget (chosen when the study begins), else from the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from aim_tune.spec import schema
from aim_tune.spec.catalog import Setting
from aim_tune.spec.schema import Say, absolute, check, check_section
from aim_tune.spec.study import PLANS, Explore, Protocol, WarmStart
from aim_tune.spec.yaml_io import BAD, Located, say

SIZES = tuple(PLANS["default"])
"""blocks, twins, confirm."""


CARRIED = {
    **dict.fromkeys(("study", "study_hash", "digest"), Setting(kind="str")),
    "trials": Setting(kind="int", low=1),
}
"""protocol.explore.warm_start in a resolved study."""


def read_protocol(found: Located, fault: Say, home: Path) -> Protocol:
    """The section of a file in the folder `home`; values that have a fault are BAD."""
    found = _without_nulls(found, SIZES)
    explore = found.value.get("explore")
    if explore is None or explore.value is None:
        explore = Located({}, found.where)
    if not isinstance(explore.value, dict):
        if explore.value is not BAD:
            text = f"expected a mapping, found {say(explore)}"
            fault(explore.where, "protocol.explore", text)
        explore = Located({}, explore.where)
    warm = explore.value.get("warm_start")
    explore = Located({k: v for k, v in explore.value.items() if v is not warm}, explore.where)
    trials = check_section(schema.EXPLORE, explore, "protocol.explore", fault)
    trials["warm_start"] = None if warm is None else _warm_start(warm, fault, home)
    values = check_section(schema.PROTOCOL, found, "protocol", fault, ignore=("explore", "plan"))
    values["looks"] = as_tuple(values["looks"]) or ()
    return Protocol(
        **{**values, **_sizes(found, values, fault)},
        explore=Explore(**{k: as_tuple(v) for k, v in trials.items()}),
    )


def _warm_start(found: Located, fault: Say, home: Path) -> Any:
    """The folder, absolute; or (in a resolved study) what came over."""
    key = "protocol.explore.warm_start"
    if isinstance(found.value, dict):
        values = check_section(CARRIED, found, key, fault)
        return BAD if BAD in values.values() else WarmStart(**values)
    folder = check(schema.EXPLORE["warm_start"], found, key, fault)
    if folder is BAD or folder is None or found.where.startswith("--set "):
        return folder
    return absolute(os.path.join(home, os.path.expanduser(found.value)))


def _sizes(found: Located, values: Mapping[str, Any], fault: Say) -> dict[str, Any]:
    """Sizes that are not written out: by looks, by the plan; or which of them the budget is to choose."""
    sizes = {k: v for k, v in _plan(found, fault).items() if k not in found.value}
    looks = values["looks"]
    if looks and looks is not BAD and "blocks" not in found.value:
        sizes["blocks"] = looks[-1]
    if values["budget_gpu_hours"] in (None, BAD):
        return sizes
    known = {*found.value, *sizes}
    return {**sizes, "chosen": tuple(k for k in SIZES if k not in known)}


def _plan(protocol: Located, fault: Say) -> Mapping[str, int]:
    """Blocks, twins and confirm of the short form `plan`; nothing where it is not used."""
    found = protocol.value.get("plan")
    if found is None or found.value is None:
        return {}
    name = check(schema.PLAN, found, "protocol.plan", fault)
    if name is BAD:
        return {}
    if set(SIZES) <= protocol.value.keys():
        text = (
            f"changes nothing, as {', '.join(SIZES)} are written out; remove it, or make them null"
        )
        fault(found.where, "protocol.plan", text)
    return PLANS[name]


def _without_nulls(found: Located, keys: Collection[str]) -> Located:
    """A section in which null says that one of `keys` is not written out."""
    kept = {k: v for k, v in found.value.items() if k not in keys or v.value is not None}
    return Located(kept, found.where)


def as_tuple(value: Any) -> Any:
    """Lists as frozen values hold them."""
    return tuple(value) if isinstance(value, list) else value
