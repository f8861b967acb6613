"""docs/study_file.md says what the code checks: its tables are made from the schema and the catalog."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aim_tune.spec import schema
from aim_tune.spec.catalog import Catalog, Entry, Setting
from aim_tune.spec.reference import MARK, all_tables, field_docs, filled
from aim_tune.spec.study import Explore
from aim_tune.tables import HOUSE

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "study_file.md").read_text()


def test_the_tables_of_the_page_are_up_to_date():
    assert filled(PAGE, HOUSE) == PAGE, "run: python docs/write_tables.py"


def test_every_section_and_every_row_with_settings_is_on_the_page():
    for name in schema.SECTIONS:
        assert f"| `{name}` |" in PAGE
    tables, shown = all_tables(HOUSE), {m["name"] for m in MARK.finditer(PAGE)}
    bodies = {tables[name] for name in shown}
    assert not [name for name, table in tables.items() if table not in bodies]


def test_every_key_has_a_meaning():
    empty = [
        line for table in all_tables(HOUSE).values() for line in table.splitlines()
        if re.search(r"\|\s*\|$", line)
    ]  # fmt: skip
    assert not empty


def test_what_may_be_searched_is_named():
    text = " ".join(PAGE.split())
    assert ", ".join(schema.SHARED).replace(", augment", " and augment") in text


def test_a_row_by_hand():
    catalog = Catalog(
        backbones={
            "net": Entry(
                build="",
                doc="a net",
                settings={"width": Setting(kind="int", low=1, high=10**6, doc="a | b")},
            ),
            "alexnet": Entry(build="", doc="torchvision.models.alexnet"),
        },
        data={},
        addons={},
    )
    tables = all_tables(catalog)
    assert tables["backbones.net"].splitlines()[2] == (
        r"| `width` | must be given | a whole number from 1 to 1,000,000 | a \| b |"
    )
    assert tables["backbones"].splitlines()[2:] == [
        "| `net` | a net |", "| `alexnet` | torchvision.models.NAME |",
    ]  # fmt: skip
    page = "x\n<!-- table: backbones.net -->\nold\n<!-- end -->\ny"
    assert filled(page, catalog) == page.replace("old\n", tables["backbones.net"])
    with pytest.raises(KeyError):
        filled(page.replace(".net", ".nut"), catalog)


def test_the_words_are_those_under_the_field():
    assert field_docs(Explore)["lag"].startswith("Exactly results 0..i-lag are told before ask i")
