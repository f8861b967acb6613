"""One count of studies per test data, whatever the folder; never twice for the same study."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from aim_tune.errors import ResourceError
from aim_tune.registry import Entry, look_up, record, registry_path

FIRST = Entry(data_digest="d1", study_hash="s1", code_hash="c1", name="one", folder="results/one")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "test_data.jsonl"


def test_studies_on_the_same_data_are_numbered_in_order(path):
    assert record(path, FIRST).number == 1
    assert record(path, replace(FIRST, study_hash="s2", folder="elsewhere")).number == 2
    third = record(path, replace(FIRST, study_hash="s3", name="fork"))
    assert (third.number, third.studies) == (3, 3)
    assert [e.study_hash for e in third.earlier] == ["s1", "s2"]


def test_other_data_has_a_count_of_its_own(path):
    record(path, FIRST)
    assert record(path, replace(FIRST, data_digest="d2")).number == 1


def test_the_same_study_is_counted_once_in_whatever_folder(path):
    record(path, FIRST)
    record(path, replace(FIRST, study_hash="s2"))
    again = record(path, replace(FIRST, folder="a copy", name="renamed"))
    assert (again.number, again.studies) == (1, 2)
    assert len(path.read_text().splitlines()) == 2


def test_changed_code_makes_another_study(path):
    record(path, FIRST)
    assert record(path, replace(FIRST, code_hash="c2")).number == 2


def test_looks_add_up_over_studies_and_never_shrink(path):
    record(path, FIRST)
    record(path, replace(FIRST, looks=12))
    record(path, replace(FIRST, looks=5))  # a copy that has come less far
    assert record(path, replace(FIRST, study_hash="s2", looks=8)).looks == 20


def test_looking_up_writes_nothing(path):
    assert look_up(path, FIRST).number == 1
    assert not path.exists()
    record(path, FIRST)
    before = path.read_bytes()
    assert look_up(path, replace(FIRST, study_hash="s2")).number == 2
    assert path.read_bytes() == before


def test_a_line_cut_by_a_crash_costs_only_itself(path):
    record(path, FIRST)
    path.write_bytes(path.read_bytes() + b'{"data_digest": "d1", "study_h')
    assert record(path, replace(FIRST, study_hash="s2")).number == 2
    assert look_up(path, replace(FIRST, study_hash="s2")).number == 2
    assert record(path, replace(FIRST, study_hash="s3")).number == 3


def _enter(path: Path, number: int) -> None:
    record(path, replace(FIRST, study_hash=f"s{number}"))


def test_searches_that_start_together_get_different_numbers(path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_enter, args=(path, n)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    numbers = [look_up(path, replace(FIRST, study_hash=f"s{n}")).number for n in range(3)]
    assert sorted(numbers) == [1, 2, 3]


def test_a_file_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="AIM_TUNE_REGISTRY=FILE"):
        record(tmp_path / "file" / "registry.jsonl", FIRST)


def test_the_file_is_the_named_one_or_lies_in_the_state_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AIM_TUNE_REGISTRY", str(tmp_path / "ours.jsonl"))
    assert registry_path() == tmp_path / "ours.jsonl"
    monkeypatch.delenv("AIM_TUNE_REGISTRY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert registry_path() == tmp_path / "aim_tune" / "test_data.jsonl"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert registry_path().parts[-4:] == (".local", "state", "aim_tune", "test_data.jsonl")
