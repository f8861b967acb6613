"""The test labels: the only place that gives them. Imported by the driver alone (architecture test).

Who calls it writes the look to the ledger first.
"""

from __future__ import annotations

import numpy as np

from aim_tune.data.raw import raw_data
from aim_tune.spec.catalog import Catalog
from aim_tune.spec.study import Component


def test_labels(component: Component, catalog: Catalog) -> np.ndarray:
    """[n_test] int64, in the order of `Source.test_batches`."""
    return raw_data(component, catalog).test_labels


test_labels.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect
