"""Every key of a study file as Markdown tables, made from what checks it: names, defaults, limits, words.

The words are the docstrings under the fields of `study` and the `doc` of the rows in the catalog, so a
page with these tables (docs/study_file.md) cannot say anything else than the code. Writes no file.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping

from aim_tune.spec import schema, study
from aim_tune.spec.catalog import REQUIRED, Catalog, Entry, Setting
from aim_tune.spec.values import canonical

MARK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
"""Where a table stands in a page."""


BORROWED = "torchvision.models."
"""Rows that only pass a name on share one line."""


def filled(page: str, catalog: Catalog) -> str:
    """The page with every table between its marks made anew; KeyError for a mark without a table."""
    tables = all_tables(catalog)
    return MARK.sub(lambda m: f"{m[1]}{tables[m['name']]}{m[3]}", page)


def all_tables(catalog: Catalog) -> dict[str, str]:
    """Name of a table -> its Markdown: the sections, and each row of the catalog that has settings."""
    tables = {name: _table(settings, words) for name, settings, words in _sections()}
    for kind in ("backbones", "data", "addons"):
        rows: Mapping[str, Entry] = getattr(catalog, kind)
        tables[kind] = _rows(rows)
        for name, entry in rows.items():
            if entry.settings:
                docs = {key: setting.doc for key, setting in entry.settings.items()}
                tables[f"{kind}.{name}"] = _table(entry.settings, docs)
    return tables


def _sections() -> Iterator[tuple[str, Mapping[str, Setting], Mapping[str, str]]]:
    """The study's own sections: settings of the schema, docstrings of the dataclass."""
    for name, settings in (
        ("recipe", schema.RECIPE),
        ("protocol", schema.PROTOCOL),
        ("explore", schema.EXPLORE),
        ("resources", schema.RESOURCES),
    ):
        yield name, settings, field_docs(getattr(study, name.capitalize()))


def field_docs(section: type) -> dict[str, str]:
    """Field -> the text that stands under it in the source."""
    (body,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef), "a section is a class"
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            found = text.value if isinstance(text, ast.Constant) else ""
            docs[field.target.id] = " ".join(str(found).split())
    return docs


def _table(settings: Mapping[str, Setting], words: Mapping[str, str]) -> str:
    lines = ["| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{key}` | {_default(s)} | {_cell(_allowed(s))} | {_cell(words[key])} |"
        for key, s in settings.items()
    ]
    return "\n".join(lines) + "\n"


def _rows(rows: Mapping[str, Entry]) -> str:
    lines = ["| name | what it is |", "| --- | --- |"]
    borrowed = [name for name, entry in rows.items() if entry.doc == f"{BORROWED}{name}"]
    lines += [f"| `{n}` | {_cell(e.doc)} |" for n, e in rows.items() if n not in borrowed]
    if borrowed:
        lines.append(f"| {', '.join(f'`{n}`' for n in borrowed)} | {BORROWED}NAME |")
    return "\n".join(lines) + "\n"


def _allowed(setting: Setting) -> str:
    if setting.kind == "names" and setting.options:
        return f"a list of any of {', '.join(setting.options)}"
    return schema.describe(setting)


def _default(setting: Setting) -> str:
    if setting.default is REQUIRED:
        return "must be given"
    return f"`{canonical(schema.listed(setting.default))}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
