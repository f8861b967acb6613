"""The keys of a study's own sections, with kinds and limits, and how one value is checked.

Defaults come from the dataclasses in `study`, so they stand in one place. Settings of backbones,
data sets and add-ons come from their rows in the catalog; both are checked by the same code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from aim_tune.errors import unknown
from aim_tune.spec.catalog import REQUIRED, Setting
from aim_tune.spec.space import DOMAIN_KEYS, Choice, Domain, Fixed, IntUniform, Uniform
from aim_tune.spec.study import (
    ATTRIBUTIONS,
    AUGMENTS,
    MOST_TRIALS,
    OBJECTIVES,
    OPTIMIZERS,
    PACKS,
    PLANS,
    SAMPLERS,
    SCHEDULES,
    TUNABLE,
    Explore,
    Protocol,
    Recipe,
    Resources,
)  # fmt: skip
from aim_tune.spec.values import canonical
from aim_tune.spec.yaml_io import BAD, Located, say

Say = Callable[[str, str, str], None]
"""Takes a fault: where, dotted key, text."""


def _int(low: int, high: int | None = None, *, optional: bool = False) -> Setting:
    return Setting(kind="int", low=low, high=high, optional=optional)


def _float(low: float, high: float | None = None, *, optional: bool = False) -> Setting:
    return Setting(kind="float", low=low, high=high, optional=optional)


def _with_defaults(section: type, settings: Mapping[str, Setting]) -> dict[str, Setting]:
    """`settings` with the defaults of the dataclass they describe."""
    defaults = {f.name: f.default for f in fields(section)}
    return {key: replace(s, default=listed(defaults[key])) for key, s in settings.items()}


def listed(value: Any) -> Any:
    """`value` with tuples turned into lists: the plain form that YAML and JSON give back."""
    if isinstance(value, (list, tuple)):
        return [listed(v) for v in value]
    return value


RECIPE = _with_defaults(
    Recipe,
    {
        "steps": _int(1, 10**9, optional=True),
        "epochs": _int(1, 10**6, optional=True),
        "batch_size": _int(1, 10**6),
        "optimizer": Setting(kind="str", options=OPTIMIZERS),
        "schedule": Setting(kind="str", options=SCHEDULES),
        "lr": _float(1e-12),
        "weight_decay": _float(0),
        "momentum": _float(0, 0.9999),
        "label_smoothing": _float(0, 0.9999),
        "grad_clip": _float(1e-12, optional=True),
        "augment": Setting(kind="names", options=AUGMENTS),
        "evaluations": _int(1, 10**6),
        "early_stopping_patience": _int(1, 10**6, optional=True),
        "early_stopping_min_delta": _float(0, 1),
        "amp": Setting(kind="bool"),
        "channels_last": Setting(kind="bool"),
        "compile": Setting(kind="bool"),
    },
)
SHARED = {key: RECIPE[key] for key in TUNABLE}
EXPLORE = _with_defaults(
    Explore,
    {
        "trials": _int(0, MOST_TRIALS),
        "lag": _int(1, 10**4),
        "finalists": _int(0, 1000),
        "arms": Setting(kind="names"),
        "narrow": Setting(kind="bool"),
        "stopping": Setting(kind="bool"),
        "objectives": Setting(kind="names", options=OBJECTIVES),
        "warm_start": Setting(kind="path", optional=True),
    },
)
PROTOCOL = _with_defaults(
    Protocol,
    {
        "blocks": _int(0, 1000),
        "twins": _int(0, 10**6),
        "confirm": _int(0, 1000),
        "rope_points": _float(0, 100),
        "seed": _int(0),
        "looks": Setting(kind="shape", low=2, high=1000, optional=True),
        "budget_gpu_hours": _float(1e-6, optional=True),
        "search_fraction": _float(0.01, 1),
        "export_seeds": _int(0, 100),
        "attribution": Setting(kind="str", options=ATTRIBUTIONS),
        "sampler": Setting(kind="str", options=SAMPLERS),
    },
)
PLAN = Setting(kind="str", options=tuple(PLANS))
"""protocol.plan, the short form of blocks, twins and confirm."""
RESOURCES = _with_defaults(
    Resources,
    {
        "cpu": _int(1, 4096),
        "gpu": _float(0, 64),
        "pack": Setting(kind="str", options=PACKS),
        "time_limit_s": _float(1e-3, optional=True),
        "checkpoint_s": _float(0),
    },
)
SECTIONS = ("name", "backbone", "data", "arms", "recipe", "shared", "addon", "protocol",
            "resources", "plugins", "overrides", "declared_confounds")  # fmt: skip
"""Keys of a study file."""
HOMES = {
    **dict.fromkeys(RESOURCES, "resources"),
    **dict.fromkeys(PROTOCOL, "protocol"),
    **dict.fromkeys(EXPLORE, "protocol.explore"),
    **dict.fromkeys(RECIPE, "recipe"),
}
"""Key -> the section it belongs to, for keys that stand in the wrong one."""


def describe(setting: Setting) -> str:
    """What is allowed, in words.

    >>> describe(Setting(kind="int", low=1, high=8)), describe(Setting(kind="bool"))
    ('a whole number from 1 to 8', 'true or false')
    """
    if setting.options is not None and setting.kind != "names":
        text = "one of " + ", ".join(canonical(listed(o)) for o in setting.options)
        text += ", or a list of names" if setting.or_names else ""
    elif setting.kind == "shape":
        count = f"{setting.length} " if setting.length else ""
        text = f"a list of {count}whole numbers" + _limits(setting)
    else:
        text = _KINDS[setting.kind] + _limits(setting)
    return text + (" or null" if setting.optional else "")


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "path": "a path",
    "names": "a list of names",
}


def _limits(setting: Setting) -> str:
    low, high = _low(setting), setting.high
    if low is not None and high is not None:
        return f" from {low:g} to {high:,.0f}" if high >= 10**4 else f" from {low:g} to {high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return f" of at most {high:g}" if high is not None else ""


def _low(setting: Setting) -> float | None:
    return max(1, setting.low or 1) if setting.kind == "shape" else setting.low


def check(setting: Setting, found: Located, key: str, fault: Say) -> Any:
    """The value of `found` in plain form if the setting allows it, else BAD and a fault.

    Whole numbers become floats where a float is asked; lists stay lists; paths become absolute.
    """
    if found.spoiled:
        return BAD
    value = found.plain()
    if value is None and setting.optional:
        return None
    name = key.rpartition(".")[2]
    problem = (
        _misplaced(setting, value, name)
        if isinstance(value, dict)
        else _problem(setting, value, found, name)
    )
    if problem:
        fault(found.where, key, problem)
        return BAD
    return _converted(setting, value)


def _misplaced(setting: Setting, value: dict[str, Any], name: str) -> str:
    if not (value and set(value) <= set(DOMAIN_KEYS)):
        return f"expected {describe(setting)}, found a mapping"
    hint = f"; write it as shared.{name} instead" if name in TUNABLE else ""
    return f"cannot be searched here, only what stands in shared and addon can{hint}"


def _converted(setting: Setting, value: Any) -> Any:
    if setting.kind == "float":
        return float(value)
    if setting.kind == "path":
        return absolute(value)
    return value


def absolute(path: str) -> str:
    """`path` from the current folder, `~` expanded."""
    return os.path.abspath(os.path.expanduser(path))


def _problem(setting: Setting, value: Any, found: Located, name: str) -> str | None:
    """What is wrong with a value that is neither a mapping nor an allowed null; None if nothing."""
    if not _is_kind(setting, value):
        return f"expected {describe(setting)}, found {_say(found)}{_hint(setting, value)}"
    if setting.options is not None and not (setting.or_names and isinstance(value, list)):
        allowed = [listed(o) for o in setting.options]
        for item in value if setting.kind == "names" else [value]:
            if item not in allowed:
                if all(isinstance(o, str) for o in allowed):
                    return unknown(name, item, allowed)
                return f"expected {describe(setting)}, found {_say(found)}"
    if isinstance(value, list) and _are_names(value) and len(set(value)) < len(value):
        return f"names one thing twice: {value}"
    if setting.kind == "shape" and setting.length not in (None, len(value)):
        return f"expected {describe(setting)}, found {len(value)} of them: {value}"
    if setting.kind in ("int", "float", "shape"):
        low, high = _low(setting), setting.high
        for number in value if isinstance(value, list) else [value]:
            if (low is not None and number < low) or (high is not None and number > high):
                return f"expected {describe(setting)}, found {canonical(value)}"
    return None


def _is_kind(setting: Setting, value: Any) -> bool:
    match setting.kind:
        case "int":
            return _is_int(value)
        case "float":
            return _is_int(value) or isinstance(value, float)
        case "bool":
            return isinstance(value, bool)
        case "str" | "path":
            listed_names = setting.or_names and value != [] and _are_names(value)
            return (isinstance(value, str) and value != "") or listed_names
        case "shape":
            full = value != [] or setting.optional
            return isinstance(value, list) and full and all(map(_is_int, value))
        case "names":
            return _are_names(value)
    raise AssertionError(f"a row of the catalog has a setting of unknown kind {setting.kind!r}")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _say(found: Located) -> str:
    return canonical(found.plain()) if isinstance(found.value, list) else say(found)


def _hint(setting: Setting, value: Any) -> str:
    if setting.kind == "bool" and str(value).lower() in ("yes", "no", "on", "off"):
        return "; in YAML 1.2 only true and false are truth values"
    if setting.kind == "int" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if setting.kind == "str" and isinstance(value, (int, float)):
        return "; put a text that looks like a number or a truth value in quotes"
    if setting.kind in ("names", "shape") and not isinstance(value, list):
        return "; write it in brackets"
    return ""


def check_domain(setting: Setting, found: Located, key: str, fault: Say) -> Domain | Any:
    """The domain (or fixed value) that `found` writes, each of its values allowed; else BAD."""
    if not isinstance(found.value, dict):
        value = check(setting, found, key, fault)
        return BAD if value is BAD else Fixed(value)
    if len(found.value) != 1 or next(iter(found.value)) not in DOMAIN_KEYS:
        keys = ", ".join(found.value) or "nothing"
        text = f"expected a value or exactly one of {', '.join(DOMAIN_KEYS)}; found {keys}"
        fault(found.where, key, text)
        return BAD
    ((kind, body),) = found.value.items()
    if body.spoiled:
        return BAD
    if kind == "choice":
        return _check_choice(setting, body, key, fault)
    return _check_range(setting, kind, body, key, fault)


def _check_choice(setting: Setting, body: Located, key: str, fault: Say) -> Domain | Any:
    if not isinstance(body.value, list) or not body.value:
        text = f"choice needs a list of values in brackets, found {_say(body)}"
        fault(body.where, key, text)
        return BAD
    options = [check(setting, o, key, fault) for o in body.value]
    if any(o is BAD for o in options):
        return BAD
    texts = [canonical(o) for o in options]
    twice = sorted({t for t in texts if texts.count(t) > 1})
    if twice:
        fault(body.where, key, f"choice offers {', '.join(twice)} twice; each option once")
        return BAD
    return Choice(tuple(options))


def _check_range(setting: Setting, kind: str, body: Located, key: str, fault: Say) -> Domain | Any:
    wanted = "int" if kind.endswith("int") else "float"
    if setting.kind != wanted or setting.options is not None:
        use = {"int": "int or log_int", "float": "uniform or log_uniform"}.get(setting.kind)
        use = "choice" if use is None or setting.options is not None else f"choice, {use}"
        text = f"{kind} does not fit here (it takes {describe(setting)}); use {use}"
        fault(body.where, key, text)
        return BAD
    if not isinstance(body.value, list) or len(body.value) != 2:
        fault(body.where, key, f"{kind} needs [low, high], found {_say(body)}")
        return BAD
    low, high = (check(replace(setting, optional=False), v, key, fault) for v in body.value)
    if low is BAD or high is BAD:
        return BAD
    if low >= high:
        fault(body.where, key, f"{kind} needs low < high, found [{low:g}, {high:g}]")
        return BAD
    if kind.startswith("log") and low <= 0:
        plain = kind.removeprefix("log_")
        fault(body.where, key, f"{kind} needs low > 0, found {low:g}; or use {plain}")
        return BAD
    log = kind.startswith("log")
    return IntUniform(low, high, log=log) if wanted == "int" else Uniform(low, high, log=log)


def check_section(
    settings: Mapping[str, Setting],
    found: Located,
    key: str,
    fault: Say,
    *,
    ignore: tuple[str, ...] = (),
    domains: bool = False,
    fill: bool = True,
    what: str = "key",
) -> dict[str, Any]:
    """All settings of a mapping, defaults filled in; unknown and missing ones become faults.

    With `domains` each value is a Domain, defaults included; without `fill` absent keys stay absent.
    """
    values: dict[str, Any] = {}
    items = found.value if isinstance(found.value, dict) else {}
    for name, child in items.items():
        dotted = f"{key}.{name}"
        if name in ignore:
            continue
        if name not in settings:
            fault(child.where, dotted, unknown_key(name, list(settings) + list(ignore), what))
            continue
        checker = check_domain if domains else check
        values[name] = checker(settings[name], child, dotted, fault)
    for name, setting in settings.items() if fill else ():
        if name in values:
            continue
        if setting.default is REQUIRED:
            fault(found.where, f"{key}.{name}", f"is missing; give {describe(setting)}")
        values[name] = _default(setting, domains)
    return values


def _default(setting: Setting, domains: bool) -> Any:
    if setting.default is REQUIRED:
        return BAD
    value = listed(setting.default)
    if setting.kind == "path" and value is not None:
        value = absolute(value)
    return Fixed(value) if domains else value


_WORD = re.compile(r"[A-Za-z0-9_.-]{1,60}")


def unknown_key(name: str, known: list[str], what: str = "key") -> str:
    """Text for a key that does not belong here: where it belongs, or the nearest known one."""
    shown = name if _WORD.fullmatch(name) else name[:57] + "..." if len(name) > 60 else name
    home = HOMES.get(name)
    return unknown(what, shown, known) + (f"; {name} belongs under {home}" if home else "")
