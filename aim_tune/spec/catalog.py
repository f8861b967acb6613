"""What a study may name: rows for backbones, data sets and add-ons, with the settings each takes.

The rows themselves stand beside their builders (`models/__init__.py`, `data/__init__.py`,
`addons/__init__.py`). House rows name their builder as "module:function" and load it when it is
used, so that validating a study imports no torch. Rows of a plug-in carry the function itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()
"""Default of a setting that must be given."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting of a row: its kind, default and limits."""

    kind: str
    """int | float | bool | str | path | shape (a list of positive ints) | names (a list of str)."""
    default: Any = REQUIRED
    low: float | None = None
    """Smallest allowed value (for a shape: of each entry)."""
    high: float | None = None
    options: tuple[Any, ...] | None = None
    """Allowed values, where they are few."""
    length: int | None = None
    """Number of entries of a shape."""
    optional: bool = False
    """Whether null is allowed."""
    or_names: bool = False
    """Whether a text may also be a list of names, which are checked when the network is built."""
    doc: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row of a table."""

    build: str | Callable[..., Any]
    doc: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments the row itself sets, such as depth=8."""

    def load(self) -> Callable[..., Any]:
        """The builder; house builders are imported on first use."""
        return _loaded(self.build)

    def defaults(self) -> dict[str, Any]:
        """Defaults of all settings that have one."""
        return {k: s.default for k, s in self.settings.items() if s.default is not REQUIRED}


def _loaded(what: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(what):
        return what
    module, _, name = what.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class AddonEntry(Entry):
    """An add-on: its settings are what a study may fix or search."""

    arms: Mapping[str, str]
    """Arm name -> one line on what this arm is; the builder gets the name as `arm`."""
    primary: str
    """The arm that is the add-on itself, such as aim."""
    placebo: str | None = None
    """The arm that has the same graph without the active part, such as frozen."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Settings that its authors used: the first trial of explore, as near as a study's space allows."""
    matched: Mapping[str, str] = field(default_factory=dict)
    """Arms without the add-on that cost what `primary` costs: arm -> parameters, flops, step_ms or seconds.
    The last two are measured by the study: step_ms hands the builder `widen_to` (parameters); seconds
    trains the backbone for more steps."""
    confounds: Mapping[str, str] = field(default_factory=dict)
    """Arms that differ from baseline in more than the add-on: arm -> in what, for the verdict."""
    album: str | Callable[..., Any] | None = None
    """Takes pictures of what `primary` learned: album(model) before a training, and after it
    .finish(model, images, labels).to_dict()."""

    def load_album(self) -> Callable[..., Any] | None:
        """The album's class; None where there is none."""
        return None if self.album is None else _loaded(self.album)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """All rows that a study may name: the house tables plus those of its plug-ins."""

    backbones: Mapping[str, Entry]
    data: Mapping[str, Entry]
    addons: Mapping[str, AddonEntry]

    def merged(self, other: Catalog) -> Catalog:
        """This catalog with the rows of another one added (the other one wins)."""
        return Catalog(
            backbones={**self.backbones, **other.backbones},
            data={**self.data, **other.data},
            addons={**self.addons, **other.addons},
        )
