"""docs/ is true: Python blocks run, studies load, commands parse, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = (
    "quickstart",
    "study_file",
    "own_data",
    "own_network",
    "attach",
    "reading_a_verdict",
    "faq",
    "own_addon",
    "python_api",
    "retrain",
)
PAGES = [ROOT / "docs" / f"{name}.md" for name in NAMES]


def blocks(language: str) -> list[tuple[Path, str]]:
    """(page, block) of every page."""
    pattern = rf"```{language}\n(.*?)```"
    return [(p, b) for p in PAGES for b in re.findall(pattern, p.read_text(), flags=re.DOTALL)]


def commands() -> list[str]:
    """Every command shown that starts one of our verbs, in blocks and in running text."""
    lines = [line for _, block in blocks("sh") for line in block.splitlines()]
    inline = [c for p in PAGES for c in re.findall(r"`([^`\n]+)`", p.read_text())]
    return [c for c in lines + inline if c.startswith("python -m aim_tune.")]


@pytest.mark.parametrize(
    "page", dict.fromkeys(p for p, _ in blocks("python")), ids=lambda p: p.stem
)
def test_python_blocks_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for block in (b for p, b in blocks("python") if p == page):
        exec(compile(block, page.name, "exec"), names)


@pytest.mark.parametrize(
    ("page", "block"), blocks("yaml"), ids=lambda v: getattr(v, "stem", "block")
)
def test_studies_load_with_the_plugins_of_their_page(
    page: Path, block: str, tmp_path: Path
) -> None:
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    for name in re.findall(r"plugins: \[(.*?)\]", block):
        sources = [b for p, b in blocks("python") if p == page and f'{{"{name[:-3]}":' in b]
        (tmp_path / name).write_text(sources[0])
    (tmp_path / "study.yaml").write_text(block)
    study, _ = load_study(tmp_path / "study.yaml", HOUSE)
    assert study.compares


def test_a_data_set_shown_is_one(tmp_path: Path) -> None:
    from aim_tune.data.source import check_data
    from aim_tune.spec import load_study
    from aim_tune.tables import HOUSE

    (block,) = [b for _, b in blocks("python") if "DATASETS" in b]
    (tmp_path / "my_data.py").write_text(block)
    (tmp_path / "study.yaml").write_text(
        "name: blobs\nplugins: [my_data.py]\nbackbone: {name: mlp}\n"
        "data: {name: two_blobs, side: 16, val_images: 100}\narms: [baseline]\n"
        "recipe: {steps: 10, batch_size: 16}\nshared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}\n"
        "protocol: {explore: {trials: 2}, blocks: 0}\n"
    )
    study, catalog = load_study(tmp_path / "study.yaml", HOUSE)
    info = check_data(study.data, catalog)
    assert (info.train, info.val, info.test) == (500, 100, 300)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_are_understood(command: str) -> None:
    verb, *arguments = shlex.split(command.removeprefix("python -m aim_tune."), comments=True)
    parser = importlib.import_module(f"aim_tune.{verb}").parser()
    parser.parse_args(arguments)  # leaves with SystemExit where it does not understand


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_verdict_is_explained() -> None:
    from aim_tune.reporting.words import LABELS

    text = (ROOT / "docs" / "reading_a_verdict.md").read_text()
    for label in LABELS.values():
        assert f"**{label.lower()}**" in text, label
