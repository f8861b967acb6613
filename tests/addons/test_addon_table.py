"""The add-on table offers exactly what the builder takes."""

from __future__ import annotations

import inspect

from aim_tune.addons import ADDONS
from aim_tune.addons.memory import ARMS, attach
from aim_tune.addons.memory.arms import MATCHED
from aim_tune.addons.memory.settings import CHOICES


def test_the_settings_of_memory_are_what_attach_takes_with_the_same_defaults() -> None:
    row, accepted = ADDONS["memory"], inspect.signature(attach).parameters
    for name, setting in row.settings.items():
        if name != "memory_shape":  # attach alone has no preset for the shape
            assert accepted[name].default == setting.default, name
        if name in CHOICES:
            assert tuple(setting.options) == tuple(CHOICES[name]), name


def test_the_arms_of_memory_are_what_attach_builds() -> None:
    assert set(ADDONS["memory"].arms) == {*ARMS, *MATCHED}
    assert tuple(ADDONS["memory"].matched) == MATCHED


def test_what_a_row_says_of_single_arms_is_of_its_own_arms() -> None:
    for row in ADDONS.values():
        assert {*row.matched, *row.confounds} <= set(row.arms)
