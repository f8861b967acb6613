"""Temporary folders that do not outlive a killed process: the next one removes them.

Each folder holds a lock that the kernel lets go of when its process dies, however it dies; a folder
whose lock can be taken belongs to nobody.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "aim_ray_"  # short: Ray puts sockets below, and their paths allow 107 characters
LOCK = "lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder, removed at the end; those of dead processes are removed at the start."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with open(folder / f"{LOCK}.new", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.rename(folder / f"{LOCK}.new", folder / LOCK)  # there is never a lock file without lock
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what killed processes have left."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        try:
            with open(path, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # alive, gone meanwhile, or another user's
            continue
