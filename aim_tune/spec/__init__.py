"""What was asked: frozen values, and the study file they come from. Imports no torch."""

from __future__ import annotations

from aim_tune.spec.catalog import REQUIRED, AddonEntry, Catalog, Entry, Setting
from aim_tune.spec.loader import load_study
from aim_tune.spec.plugins import load_plugins
from aim_tune.spec.request import STREAMS, Job, Point, Request
from aim_tune.spec.space import Choice, Domain, Fixed, IntUniform, Uniform
from aim_tune.spec.study import (
    BASELINE,
    Addon,
    Component,
    Explore,
    Plugin,
    Protocol,
    Recipe,
    Resources,
    Study,
    WarmStart,
)  # fmt: skip
from aim_tune.spec.values import canonical, derive_seed, short_hash
from aim_tune.spec.yaml_io import dump, load_plain

__all__ = [
    "BASELINE",
    "REQUIRED",
    "STREAMS",
    "Addon",
    "AddonEntry",
    "Catalog",
    "Choice",
    "Component",
    "Domain",
    "Entry",
    "Explore",
    "Fixed",
    "IntUniform",
    "Job",
    "Plugin",
    "Point",
    "Protocol",
    "Recipe",
    "Request",
    "Resources",
    "Setting",
    "Study",
    "Uniform",
    "WarmStart",
    "canonical",
    "derive_seed",
    "dump",
    "load_plain",
    "load_plugins",
    "load_study",
    "short_hash",
]
