"""AiM (Memory for Artificial Intelligence): a memory that layers read and update blocks rewrite.

`from aim_tune.addons.memory import attach` is useful alone; it needs only torch. `layout` lays memory
over features, `layers` reads and rewrites it, `plan` decides where, `attach` installs.
"""

from __future__ import annotations

from aim_tune.addons.memory.attach import ARMS, attach, baseline_state_dict, build, detach
from aim_tune.addons.memory.report import AttachReport

__all__ = ["ARMS", "AttachReport", "attach", "baseline_state_dict", "build", "detach"]
