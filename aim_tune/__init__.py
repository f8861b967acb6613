"""Honest, distributed comparison of neural-network add-ons.

AiM (Memory for Artificial Intelligence) is the first add-on. Importing the package costs nothing: what
stands in `_HOMES` is loaded when it is asked for (PEP 562). Nobody inside the package imports this root.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aim_tune.addons.memory import attach
    from aim_tune.api import StudyResult, load, run
    from aim_tune.artifacts.network import load_model

__version__ = "0.1.0"
__all__ = ["StudyResult", "__version__", "attach", "load", "load_model", "run"]

_HOMES = {
    "attach": "aim_tune.addons.memory",
    "run": "aim_tune.api",
    "load": "aim_tune.api",
    "StudyResult": "aim_tune.api",
    "load_model": "aim_tune.artifacts.network",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'aim_tune' has no attribute {name!r}")
