"""What torch.compile needs beside torch: a compiler and Python's headers. Looks at the machine without torch.

Nothing is compiled to find out, so that a search and the doctor can ask in a millisecond. On a CPU torch
writes C++; on a GPU it writes Triton, whose launchers are C.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from aim_tune.errors import ResourceError
from aim_tune.spec.study import Study


def compiles(study: Study) -> bool:
    """Whether any arm is trained compiled."""
    return any(study.recipe_of(arm, {}).compile for arm in study.arms)


def check_compiler(study: Study) -> None:
    """Raise ResourceError where the study compiles its networks and this machine cannot."""
    missing = missing_compiler(study.resources.gpu > 0) if compiles(study) else None
    if missing:
        what, advice = missing
        raise ResourceError(
            f"recipe.compile is true, but {what}: {advice}, or set recipe.compile to false."
        )


def missing_compiler(
    gpu: bool, environment: Mapping[str, str] = os.environ, include: str | None = None
) -> tuple[str, str] | None:
    """What is missing here, and how to get it; None where all is there. `include`: Python's headers."""
    headers = Path(include or sysconfig.get_path("include"))
    named = environment.get("CC" if gpu else "CXX")
    usual = ("clang", "gcc") if gpu else ("clang++" if sys.platform == "darwin" else "g++",)
    if gpu and find_spec("triton") is None:
        return "Triton is missing here", "pip install triton (torch for CUDA brings it)"
    if not any(shutil.which(name) for name in ((named,) if named else usual)):
        what = f"there is no {'C' if gpu else 'C++'} compiler here ({named or ' or '.join(usual)})"
        return what, "install one, such as with `apt-get install g++`"
    if not (headers / "Python.h").is_file():
        what = f"Python's headers are missing here ({headers / 'Python.h'})"
        return what, "install them, such as with `apt-get install python3-dev`"
    return None
