"""AiM (Memory for Artificial Intelligence): a memory that layers read and update blocks rewrite.

`from aim_tune.addons.memory import attach` is useful alone; it needs only torch. `layout` lays memory
over features, `bank` holds it, `readers` read and `updates` rewrite it, `plan` decides where, `attach`
installs; `arms` builds every arm of a study. `published` is the network of the article, for reference.
"""

from __future__ import annotations

from aim_tune.addons.memory.arms import build, build_published
from aim_tune.addons.memory.attach import attach, baseline_state_dict, detach
from aim_tune.addons.memory.pictures import MemoryAlbum
from aim_tune.addons.memory.published import keras_count, published_resnet50
from aim_tune.addons.memory.report import AttachReport
from aim_tune.addons.memory.settings import ARMS, PRESETS, described_shape

__all__ = [
    "ARMS",
    "PRESETS",
    "AttachReport",
    "MemoryAlbum",
    "attach",
    "baseline_state_dict",
    "build",
    "build_published",
    "described_shape",
    "detach",
    "keras_count",
    "published_resnet50",
]
