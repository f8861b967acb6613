"""README.md is true: its Python blocks run, its links lead somewhere, its study file is a study."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "mlflow").glob("*.md"))]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_blocks_run(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_study_shown_is_the_quick_start(tmp_path: Path) -> None:
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    (shown,) = blocks("yaml")
    file = tmp_path / "study.yaml"
    file.write_text(shown)
    study, _ = load_study(file, HOUSE)
    quickstart, _ = load_study(ROOT / "search_spaces" / "quickstart.yaml", HOUSE)
    assert study == quickstart


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_local_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_shown_names_an_existing_verb() -> None:
    for verb in re.findall(r"python -m aim_tune\.(\w+)", README):
        assert (ROOT / "aim_tune" / f"{verb}.py").exists(), verb
