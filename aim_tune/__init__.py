"""Honest, distributed comparison of neural-network add-ons.

AiM (Memory for Artificial Intelligence) is the first add-on. Importing the package costs nothing:
`attach` is loaded when it is asked for (PEP 562). Nobody inside the package imports this root.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "attach"]


def __getattr__(name: str) -> Any:
    if name == "attach":
        from aim_tune.addons.memory import attach

        return attach
    raise AttributeError(f"module 'aim_tune' has no attribute {name!r}")
