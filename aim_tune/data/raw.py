"""From a study's data component to raw data, through the table row's builder. Holds test labels:

only `data.source` (which drops them) and `data.sealed` (which gives nothing else) use it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from aim_tune.data.arrays import Arrays, wrap
from aim_tune.data.files import Files
from aim_tune.errors import DataError, unknown
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component


def raw_data(component: Component, catalog: Catalog) -> Arrays | Files:
    """Checked raw data; raises DataError, naming the data set, for whatever is wrong with it."""
    entry = catalog.data.get(component.name)
    if entry is None:
        raise DataError(unknown("data set", component.name, list(catalog.data)))
    build = entry.load()
    settings = {**entry.fixed, **entry.defaults(), **component.settings}
    try:
        value = build(**accepted(build, settings))
    except (OSError, MemoryError) as error:
        raise DataError(f"data set {component.name!r}: {error}") from error
    return value if isinstance(value, Files) else wrap(value, f"data set {component.name!r}")


def accepted(build: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the builder takes: sizes of splits, for one, are not its business."""
    parameters = inspect.signature(build).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(settings)
    return {name: value for name, value in settings.items() if name in parameters}
