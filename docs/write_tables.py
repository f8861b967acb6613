"""Makes the tables in docs/study_file.md anew: python docs/write_tables.py, after a key has changed."""

from __future__ import annotations

from pathlib import Path

from aim_tune.spec.reference import filled
from aim_tune.tables import HOUSE

PAGE = Path(__file__).with_name("study_file.md")

if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), HOUSE))
