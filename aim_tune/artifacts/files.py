"""Files that are written whole or not at all. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aim_tune.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises UserError where that cannot be done."""
    with whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it gets the name `path` if all went well, else it goes.

    Raises UserError where the file cannot be written; other errors pass through.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)
