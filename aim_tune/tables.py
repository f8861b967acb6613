"""The house catalog: every backbone, data set and add-on a study may name without a plug-in.

The rows stand beside their builders; this file only puts the three tables together. No torch.
"""

from __future__ import annotations

from aim_tune.addons import ADDONS
from aim_tune.data import DATASETS
from aim_tune.models import BACKBONES
from aim_tune.spec.catalog import Catalog

HOUSE = Catalog(backbones=BACKBONES, data=DATASETS, addons=ADDONS)
"""What a study is checked against; plug-ins add rows with `HOUSE.merged`."""
