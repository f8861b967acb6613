"""A study file becomes a Study: everything checked, every default filled in, all faults at once.

`Study.to_dict` written with `yaml_io.dump` loads again to an equal study. Imports no torch; plug-ins
named in the study do run, as they bring rows and settings of their own. Looks at no data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from aim_tune.errors import Fault, StudyError, unknown
from aim_tune.spec import plugins as plugin_files
from aim_tune.spec import schema
from aim_tune.spec.catalog import Catalog, Entry, Setting
from aim_tune.spec.protocol_section import as_tuple, read_protocol
from aim_tune.spec.schema import check, check_section, unknown_key
from aim_tune.spec.study import (
    BASELINE,
    Addon,
    Component,
    Plugin,
    Recipe,
    Resources,
    Study,
)  # fmt: skip
from aim_tune.spec.together import Together
from aim_tune.spec.yaml_io import BAD, Located, load_file, load_value, say

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAKEN = ("mlflow.db", "mlartifacts")  # what lies beside the studies in the results folder


def load_study(path: Path, house: Catalog, overrides: Sequence[str] = ()) -> tuple[Study, Catalog]:
    """The study in a file, and the catalog with the rows of its plug-ins added to `house`.

    `overrides` are texts such as "protocol.blocks=10" (dotted key, YAML value), as given to --set;
    they replace or add a key before anything is checked. Plug-ins are found relative to the file;
    settings of kind path are resolved from the current folder. An add-on that none of the arms has
    is checked, then left out of the study.

    Raises StudyError with every fault of the file and the overrides, each with file:line.
    """
    tree, faults = load_file(Path(path))
    if tree.value is BAD:
        raise StudyError(faults)
    reader = _Reader(Path(path), tree, house, faults)
    for text in overrides:
        reader.override(text)
    study = reader.study()
    if study is None:
        raise StudyError(sorted(dict.fromkeys(reader.faults), key=_by_line))
    return study, reader.catalog


def _by_line(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (fault.where, 0)


def _put(tree: Located, names: Sequence[str], value: Located) -> Located | None:
    """`tree` with the value at a dotted key replaced; None if the way leads through a non-section.

    The short form `backbone: mlp` counts as `backbone: {name: mlp}`.
    """
    if not names:
        return value
    items = tree.value
    if items is None:
        items = {}
    elif isinstance(items, str):
        items = {"name": tree}
    elif not isinstance(items, dict):
        return None
    child = _put(items.get(names[0], Located(None, value.where)), names[1:], value)
    return None if child is None else Located({**items, names[0]: child}, tree.where)


class _Reader:
    """One reading of one file: the parts are read in turn, faults pile up."""

    def __init__(self, path: Path, tree: Located, house: Catalog, faults: list[Fault]) -> None:
        self.path = path
        self.tree = tree
        self.catalog = house
        self.faults = faults
        self.complete = True  # whether the catalog has the rows of all plug-ins

    def fault(self, where: str, key: str, text: str) -> None:
        self.faults.append(Fault(where=where, key=key, text=text))

    # -- overrides ---------------------------------------------------------------------------

    def override(self, text: str) -> None:
        """Put one --set key=value into the tree."""
        where = f"--set {text if len(text) <= 80 else text[:77] + '...'}"
        key, equals, value = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            self.fault(where, "", "expected key=value, such as protocol.blocks=10")
            return
        located, faults = load_value(value.strip(), where, key.strip())
        self.faults += faults
        changed = _put(self.tree, names, located)
        if changed is None:
            self.fault(where, key, "there is no such section; write SECTION.KEY=VALUE")
        else:
            self.tree = changed

    # -- the whole ---------------------------------------------------------------------------

    def study(self) -> Study | None:
        """The study, or None where there are faults."""
        if not isinstance(self.tree.value, dict):
            text = f"a study is a mapping with {', '.join(schema.SECTIONS)}; found {say(self.tree)}"
            self.fault(self.tree.where, "", text)
            return None
        for name, child in self.tree.value.items():
            if name not in schema.SECTIONS:
                self.fault(child.where, name, unknown_key(name, list(schema.SECTIONS)))
        plugins = self.plugins()
        backbone = self.component("backbone", self.catalog.backbones)
        data = self.component("data", self.catalog.data)
        addon = self.addon()
        arms = self.arms(addon)
        protocol = read_protocol(self.section("protocol"), self.fault, self.path.parent)
        name, resources = self.name(), self.resources()
        recipe, shared = self.recipe(), self.shared()
        overrides, declared = self.overrides(arms, shared), self.declared_confounds()
        unlatched = arms is not BAD and all(arm == BASELINE for arm in arms)
        study = Study(
            name=name,
            backbone=backbone,
            data=data,
            arms=arms,
            recipe=recipe,
            shared=shared,
            addon=None if unlatched else addon,
            protocol=protocol,
            resources=resources,
            plugins=plugins,
            overrides=overrides,
            declared_confounds=declared,
        )
        entry = self.catalog.addons.get(addon.name) if isinstance(addon, Addon) else None
        declared = Together(study=study, entry=entry, tree=self.tree, fault=self.fault).check()
        return None if self.faults else replace(study, declared_confounds=declared)

    def get(self, key: str) -> Located | None:
        """A top-level key; None if absent or null."""
        found = self.tree.value.get(key)
        return None if found is None or found.value is None else found

    def section(self, key: str) -> Located:
        """A top-level mapping; an empty one if absent, and after the fault if it is something else."""
        found = self.get(key)
        if found is None:
            return Located({}, self.tree.value.get(key, self.tree).where)
        return self.mapping(found, key)

    def mapping(self, found: Located, key: str) -> Located:
        if not isinstance(found.value, dict):
            if found.value is not BAD:
                self.fault(found.where, key, f"expected a mapping, found {say(found)}")
            return Located({}, found.where)
        return found

    # -- parts -------------------------------------------------------------------------------

    def name(self) -> Any:
        found = self.get("name")
        if found is None:
            self.fault(self.tree.where, "name", "is missing; it names the folder of the results")
            return BAD
        value = check(Setting(kind="str"), found, "name", self.fault)
        if value is BAD:
            return BAD
        if not _NAME.fullmatch(value):
            text = (
                "expected up to 100 letters (a-z), digits, dots, dashes or underscores that begin "
                f"with a letter or digit, found {value[:60]!r}" + ("..." if len(value) > 60 else "")
            )
            self.fault(found.where, "name", text)
        if value.lower() in _TAKEN:
            self.fault(
                found.where, "name", f"{value} is where MLflow keeps its things; take another"
            )
        return value

    def plugins(self) -> tuple[Plugin, ...]:
        """The plug-ins of the study; their rows join the catalog."""
        found = self.get("plugins")
        if found is None or found.value is BAD:
            return ()
        if not isinstance(found.value, list):
            self.fault(found.where, "plugins", f"expected [file.py, ...], found {say(found)}")
            return ()
        read = [self.plugin(item, f"plugins[{i}]") for i, item in enumerate(found.value)]
        plugins = tuple(p for p in read if p is not None)
        self.complete = len(plugins) == len(read)
        house = self.catalog
        for i, plugin in enumerate(plugins):
            try:
                rows = plugin_files.load_plugins(plugins[: i + 1])
                plugin_files.clash(plugin, rows, house, "the house")
                self.catalog = house.merged(rows)
            except StudyError as error:
                self.faults += error.faults
                self.complete = False
                break
        return plugins

    def plugin(self, found: Located, key: str) -> Plugin | None:
        """A plug-in given as a path, or (in a resolved study) with its text."""
        if isinstance(found.value, dict):
            return self.carried_plugin(found, key)
        value = check(Setting(kind="str"), found, key, self.fault)
        if value is BAD:
            return None
        if PurePath(value).is_absolute() or not value.endswith(".py"):
            text = f"expected a .py file, relative to {self.path.name}, found {value!r}"
            self.fault(found.where, key, text)
            return None
        try:
            return plugin_files.read_plugin(value, self.path.parent)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            lies = self.path.parent / value
            self.fault(found.where, key, f"{lies} cannot be read ({reason.lower()})")
            return None

    def carried_plugin(self, found: Located, key: str) -> Plugin | None:
        settings = dict.fromkeys(("path", "sha256", "source"), Setting(kind="str"))
        values = check_section(settings, found, key, self.fault)
        if BAD in values.values():
            return None
        if plugin_files.sha256(values["source"]) != values["sha256"]:
            text = "the text of the plug-in was changed: its sha256 differs; give its path instead"
            self.fault(found.where, key, text)
            return None
        return Plugin(**values)

    def row(self, key: str, table: Mapping[str, Entry]) -> tuple[Entry | None, Any, Located]:
        """The row that a section names, its name and the section."""
        found = self.get(key)
        if found is None:
            text = f"is missing; write {key}: {{name: ...}} with one of {', '.join(sorted(table))}"
            self.fault(self.tree.value.get(key, self.tree).where, key, text)
            return None, BAD, Located({}, self.tree.where)
        if isinstance(found.value, str):
            found = Located({"name": found}, found.where)
        if not isinstance(found.value, dict):
            return None, BAD, self.mapping(found, key)
        named = found.value.get("name")
        if named is None:
            self.fault(found.where, f"{key}.name", f"is missing; one of {', '.join(sorted(table))}")
            return None, BAD, found
        name = check(Setting(kind="str"), named, f"{key}.name", self.fault)
        if name is not BAD and name not in table and self.complete:
            what = {"backbone": "backbone", "data": "data set", "addon": "add-on"}[key]
            self.fault(named.where, f"{key}.name", unknown(what, name, list(table)))
        return (None if name is BAD else table.get(name)), name, found

    def component(self, key: str, table: Mapping[str, Entry]) -> Any:
        entry, name, found = self.row(key, table)
        if entry is None:
            return BAD
        what = f"setting of {name}"
        values = check_section(entry.settings, found, key, self.fault, ignore=("name",), what=what)
        return Component(name=name, settings=values)

    def addon(self) -> Any:
        """The add-on with a domain for every setting; None if there is none, BAD after a fault."""
        if self.get("addon") is None:
            return None
        entry, name, found = self.row("addon", self.catalog.addons)
        if entry is None:
            return BAD
        space = check_section(
            entry.settings, found, "addon", self.fault,
            ignore=("name",), domains=True, what=f"setting of {name}",
        )  # fmt: skip
        return Addon(name=name, space=space)

    def arms(self, addon: Any) -> Any:
        entry = self.catalog.addons.get(addon.name) if isinstance(addon, Addon) else None
        found = self.get("arms")
        if found is None:
            return (
                (BASELINE, entry.primary, *filter(None, [entry.placebo])) if entry else (BASELINE,)
            )
        names = check(Setting(kind="names"), found, "arms", self.fault)
        if names is BAD:
            return BAD
        if not names:
            self.fault(
                found.where, "arms", "names no arm; plain search takes one, such as [baseline]"
            )
        known = [BASELINE, *(entry.arms if entry else ())]
        for place, name in zip(found.value, names, strict=True):
            if name in known or addon is BAD:
                continue
            text = unknown("arm", name, known)
            if addon is None:
                text = f"the arm {name!r} needs an add-on: add a section addon: {{name: ...}}"
            self.fault(place.where, "arms", text)
        return tuple(names)

    def recipe(self) -> Recipe:
        found = self.section("recipe")
        given = check_section(schema.RECIPE, found, "recipe", self.fault, fill=False)
        shared = self.get("shared")
        searched = shared.value if shared and isinstance(shared.value, dict) else {}
        for key in [k for k in schema.SHARED if k in given and k in searched]:
            text = (
                f"stands in shared too (at {searched[key].where}); a value is either fixed or "
                f"searched: remove one, or fix it with --set shared.{key}=..."
            )
            self.fault(found.value[key].where, f"recipe.{key}", text)
        lengths = [k for k in ("steps", "epochs") if given.get(k) is not None]
        if len(lengths) != 1:
            said = "both" if lengths else "neither"
            text = f"exactly one of steps and epochs must be given, found {said}"
            hint = "; drop one, as with --set recipe.epochs=null" if lengths else ""
            self.fault(found.where, "recipe", text + hint)
        augment = given.pop("augment", ())
        return Recipe(**given, augment=augment if augment is BAD else tuple(augment))

    def shared(self) -> dict[str, Any]:
        found = self.section("shared")
        items = dict(found.value)
        for key in [k for k in items if k in schema.RECIPE and k not in schema.SHARED]:
            text = f"cannot be searched; fix it as recipe.{key}. Searchable: "
            place = items.pop(key).where
            self.fault(place, f"shared.{key}", text + ", ".join(schema.SHARED))
        return check_section(
            schema.SHARED, Located(items, found.where), "shared", self.fault,
            domains=True, fill=False, what="hyperparameter",
        )  # fmt: skip

    def overrides(self, arms: Any, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Arm -> the recipe fields in which it is trained otherwise."""
        values = {}
        for arm, child in self.section("overrides").value.items():
            key = f"overrides.{arm}"
            if arms is not BAD and arm not in arms:
                self.fault(child.where, key, unknown("arm", arm, list(arms)))
            own = self.mapping(child, key)
            given = check_section(schema.RECIPE, own, key, self.fault, fill=False)
            for name in [k for k in given if k in shared]:
                text = f"{name} is searched under shared, the same for all arms; fix it there first"
                self.fault(own.value[name].where, f"{key}.{name}", text)
            if given.get("steps") and given.get("epochs"):
                self.fault(child.where, key, "gives both steps and epochs; keep one")
            values[arm] = {k: as_tuple(v) for k, v in given.items()}
        return values

    def declared_confounds(self) -> dict[str, Any]:
        """What was declared -> how the arms differ (empty where only the name is given)."""
        found = self.get("declared_confounds")
        if found is not None and isinstance(found.value, dict):
            text = Setting(kind="str")
            key = "declared_confounds"
            return {k: check(text, v, f"{key}.{k}", self.fault) for k, v in found.value.items()}
        if found is None:
            return {}
        names = check(Setting(kind="names"), found, "declared_confounds", self.fault)
        return {} if names is BAD else dict.fromkeys(names, "")

    def resources(self) -> Resources:
        found = self.section("resources")
        values = check_section(schema.RESOURCES, found, "resources", self.fault)
        gpu = values["gpu"]
        if gpu is not BAD and gpu > 1 and gpu != int(gpu):
            text = (
                f"expected a share of one GPU such as 0.5, or a whole number of them, found {gpu:g}; with 1, "
                "several GPUs are used by several trials at a time"
            )
            self.fault(found.value["gpu"].where, "resources.gpu", text)
        return Resources(**values)
