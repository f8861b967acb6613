"""Domains of hyperparameters: frozen values that know their range and their JSON form.

YAML: a mapping with exactly one of the keys below is a domain; anything else is a fixed value.
    lr: {log_uniform: [1.0e-3, 1.0e-1]}      width: {int: [8, 32]}      activation: {choice: [relu, tanh]}
How a domain is sampled is the protocol's business (numpy or Optuna).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fixed:
    """One value, not searched."""

    value: Any

    def to_json(self) -> Any:
        """The value itself."""
        return self.value


@dataclass(frozen=True)
class Choice:
    """One of several values; order carries no meaning."""

    options: tuple[Any, ...]

    def to_json(self) -> Any:
        """{choice: [...]}."""
        return {"choice": list(self.options)}


@dataclass(frozen=True)
class Uniform:
    """A float, uniform between low and high, or uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def to_json(self) -> Any:
        """{uniform: [low, high]} or {log_uniform: [low, high]}."""
        return {"log_uniform" if self.log else "uniform": [self.low, self.high]}


@dataclass(frozen=True)
class IntUniform:
    """An int between low and high inclusive, or uniform in its logarithm."""

    low: int
    high: int
    log: bool = False

    def to_json(self) -> Any:
        """{int: [low, high]} or {log_int: [low, high]}."""
        return {"log_int" if self.log else "int": [self.low, self.high]}


Domain = Fixed | Choice | Uniform | IntUniform
DOMAIN_KEYS = ("choice", "uniform", "log_uniform", "int", "log_int")


def domain_from_json(value: Any) -> Domain:
    """The domain written as `value`; lists become tuples inside choices. No validation."""
    if not (isinstance(value, dict) and len(value) == 1):
        return Fixed(value)
    ((kind, body),) = value.items()
    match kind:
        case "choice":
            return Choice(tuple(body))
        case "uniform" | "log_uniform":
            return Uniform(float(body[0]), float(body[1]), log=kind.startswith("log"))
        case "int" | "log_int":
            return IntUniform(int(body[0]), int(body[1]), log=kind.startswith("log"))
    return Fixed(value)
