"""A user's own rows: plug-in files become modules, their tables become a catalog.

A plug-in is one Python file with any of the tables BACKBONES, DATASETS, ADDONS (name -> function,
class or Entry). Its text travels inside the study, so that a worker, a resume and a retrain all run
the same lines; it is trusted like any code you run. Settings are read off the keyword-only parameters:

    backbone   def net(*, classes, image_shape, width: int = 16) -> nn.Module
    data set   def data(*, noise: float = 0.1) -> Arrays, or the 4-tuple of arrays
               (train_images NCHW uint8 or float32, train_labels, test_images, test_labels)
    add-on     class with arms, primary, placebo and build(backbone, *, arm, image_shape, seed, **settings)
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aim_tune.errors import Fault, StudyError
from aim_tune.spec.catalog import REQUIRED, AddonEntry, Catalog, Entry, Setting
from aim_tune.spec.study import BASELINE, Plugin

TABLES = ("BACKBONES", "DATASETS", "ADDONS")
GIVEN_BACKBONE = ("classes", "image_shape")
GIVEN_ADDON = ("arm", "image_shape", "seed")
SPLIT_SETTINGS = {
    "train_images": Setting(
        kind="int", default=None, low=1, optional=True,
        doc="Training images per split; null: all that validation leaves.",
    ),
    "val_images": Setting(
        kind="int", default=None, low=1, optional=True,
        doc="Validation images per split; null: a fifth of the pool.",
    ),
}  # fmt: skip
"""Settings that every data set of a plug-in has; its function need not take them."""

E = TypeVar("E", bound=Entry)


def read_plugin(path: str, folder: Path) -> Plugin:
    """The plug-in at `path`, relative to `folder`; OSError or UnicodeDecodeError if unreadable."""
    text = (folder / path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    return Plugin(path=path, sha256=sha256(text), source=text)


def sha256(source: str) -> str:
    """Digest of a plug-in's text."""
    return hashlib.sha256(source.encode()).hexdigest()


def load_plugins(plugins: Sequence[Plugin]) -> Catalog:
    """The rows of all plug-ins. Runs each file once per process; repeated calls are cheap.

    Raises StudyError, naming file and line, for a file that fails, has no table, or has a row that
    cannot be used; and where two plug-ins give one name.
    """
    catalog = Catalog(backbones={}, data={}, addons={})
    for plugin in plugins:
        rows = _Rows(plugin).catalog()
        clash(plugin, rows, catalog, "an earlier plug-in")
        catalog = catalog.merged(rows)
    return catalog


def clash(plugin: Plugin, rows: Catalog, known: Catalog, owner: str) -> None:
    """Raise StudyError if `rows` takes a name that is `known` already: a name means one thing."""
    for table in ("backbones", "data", "addons"):
        for name in getattr(rows, table).keys() & getattr(known, table).keys():
            text = f"{name!r} in its table is a row of {owner}; give yours another name"
            raise StudyError([Fault(where=plugin.path, key="plugins", text=text)])


def module_of(plugin: Plugin) -> types.ModuleType:
    """The plug-in as a module; known to `sys.modules`, so that its classes pickle by reference."""
    name = f"aim_tune_plugin_{sha256(plugin.source)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    filename = f"<plug-in {plugin.path}>"
    linecache.cache[filename] = (  # tracebacks and inspect then show the lines
        len(plugin.source), None, plugin.source.splitlines(keepends=True), filename,
    )  # fmt: skip
    module = types.ModuleType(name)
    module.__file__ = filename
    sys.modules[name] = module
    try:
        exec(compile(plugin.source, filename, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise _failed(plugin, filename, error) from error
    return module


def _failed(plugin: Plugin, filename: str, error: Exception) -> StudyError:
    """The fault of a file that raised, with the deepest line of it that took part."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    line = error.lineno if isinstance(error, SyntaxError) else (lines[-1] if lines else None)
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    text = f"the plug-in does not load: {type(error).__name__}: {message}"
    return StudyError([Fault(where=f"{plugin.path}:{line or 1}", key="plugins", text=text)])


class _Rows:
    """Turns the tables of one plug-in into entries."""

    def __init__(self, plugin: Plugin) -> None:
        self.plugin = plugin
        self.module = module_of(plugin)

    def catalog(self) -> Catalog:
        if not any(hasattr(self.module, t) for t in TABLES):
            names = ", ".join(TABLES)
            raise self.wrong("", f"has none of the tables {names}: NAME = {{'row': function}}")
        return Catalog(
            backbones=self.table("BACKBONES", self.backbone, Entry),
            data=self.table("DATASETS", self.data, Entry),
            addons=self.table("ADDONS", self.addon, AddonEntry),
        )

    def table(self, name: str, make: Callable[[str, Any], E], kind: type[E]) -> dict[str, E]:
        rows = getattr(self.module, name, {})
        if not isinstance(rows, Mapping) or not all(isinstance(k, str) for k in rows):
            raise self.wrong(name, f"must be a dict of name -> function, found {rows!r:.80}")
        return {k: v if isinstance(v, kind) else make(f"{name}[{k!r}]", v) for k, v in rows.items()}

    def backbone(self, row: str, function: Any) -> Entry:
        settings = self.settings(row, function, given=GIVEN_BACKBONE)
        return Entry(build=function, doc=_doc(function), settings=settings)

    def data(self, row: str, function: Any) -> Entry:
        settings = {**SPLIT_SETTINGS, **self.settings(row, function, given=())}
        return Entry(build=function, doc=_doc(function), settings=settings)

    def addon(self, row: str, addon: Any) -> AddonEntry:
        arms, primary = getattr(addon, "arms", None), getattr(addon, "primary", None)
        placebo, build = getattr(addon, "placebo", None), getattr(addon, "build", None)
        if not isinstance(arms, Mapping) or not arms or BASELINE in arms:
            raise self.wrong(
                row, f"needs arms = {{name: one line on it}} without {BASELINE}, found {arms!r}"
            )
        if not isinstance(primary, str) or primary not in arms:
            raise self.wrong(row, f"needs primary = one of {list(arms)}, found {primary!r}")
        if placebo is not None and placebo not in arms:
            raise self.wrong(row, f"needs placebo = None or one of {list(arms)}, found {placebo!r}")
        if build is None:
            raise self.wrong(row, "needs build(backbone, *, arm, image_shape, seed, **settings)")
        settings = self.settings(f"{row}.build", build, given=GIVEN_ADDON, positional=1)
        return AddonEntry(
            build=build, doc=_doc(addon), settings=settings,
            arms=dict(arms), primary=primary, placebo=placebo,
        )  # fmt: skip

    def settings(
        self, row: str, function: Any, *, given: tuple[str, ...], positional: int = 0
    ) -> dict[str, Setting]:
        """Settings of `function`: its keyword-only parameters but the `given` ones."""
        if not callable(function):
            raise self.wrong(row, f"must be a function, found {function!r:.80}")
        try:
            signature = inspect.signature(function, eval_str=True)
        except Exception:  # an annotation that cannot be evaluated: the defaults must do
            signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        missing = [g for g in given if g not in keywords]
        others = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(others) != positional or (missing and not open_ended):
            wanted = ", ".join([*["backbone"] * positional, "*", *given, "your_setting=default"])
            raise self.wrong(row, f"must take ({wanted}), found {signature}")
        return {k: self.setting(row, p) for k, p in keywords.items() if k not in given}

    def setting(self, row: str, parameter: inspect.Parameter) -> Setting:
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        annotation = parameter.annotation
        found = _from_annotation(annotation) or _from_default(default)
        if found is None:
            raise self.wrong(
                row,
                f"the setting {parameter.name!r} needs a default or an annotation of a kind "
                "known here: int, float, bool, str, Path, Literal, list[int], list[str]",
            )
        kind, options, optional = found
        if isinstance(default, tuple):
            default = list(default)
        return Setting(
            kind=kind, default=default, options=options, optional=optional or default is None
        )

    def wrong(self, row: str, text: str) -> StudyError:
        text = f"{row} {text}" if row else text
        return StudyError([Fault(where=self.plugin.path, key="plugins", text=text)])


_PLAIN = {int: "int", float: "float", bool: "bool", str: "str", Path: "path"}
_LISTS = {int: "shape", str: "names"}

Found = tuple[str, tuple[Any, ...] | None, bool]
"""Kind, options, optional."""


def _from_annotation(annotation: Any) -> Found | None:
    """What an annotation says of a setting; None if nothing is known of it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation], None, False
    if origin is typing.Literal:
        kind = _PLAIN.get(type(args[0]))
        return (kind, args, False) if kind else None
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        found = _from_annotation(inner[0]) if len(inner) == 1 else None
        return (found[0], found[1], True) if found else None
    if origin in (list, tuple, Sequence) and args and args[0] in _LISTS:
        return _LISTS[args[0]], None, False
    return None


def _from_default(default: Any) -> Found | None:
    """What a default says of a setting; None if nothing is known of it."""
    if isinstance(default, (list, tuple)) and default:
        kind = _LISTS.get(type(default[0]))
    else:
        kind = _PLAIN.get(type(default))
    return (kind, None, False) if kind else None


def _doc(row: Any) -> str:
    lines = (inspect.getdoc(row) or "").splitlines()
    return lines[0] if lines else "from a plug-in"
