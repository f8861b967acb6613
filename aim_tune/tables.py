"""The house catalog: every backbone, data set and add-on a study may name without a plug-in.

The rows stand beside their builders; this file only puts the three tables together. No torch.
"""

from __future__ import annotations

from functools import lru_cache

from aim_tune.addons import ADDONS
from aim_tune.data import DATASETS
from aim_tune.models import BACKBONES
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.plugins import load_plugins
from aim_tune.spec.study import Plugin

HOUSE = Catalog(backbones=BACKBONES, data=DATASETS, addons=ADDONS)
"""What a study is checked against; plug-ins add rows with `HOUSE.merged`."""


@lru_cache(maxsize=4)
def catalog_of(plugins: tuple[Plugin, ...]) -> Catalog:
    """The house tables with the rows of a study's plug-ins; loaded once in a process."""
    return HOUSE.merged(load_plugins(plugins)) if plugins else HOUSE
