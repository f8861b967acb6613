"""One contract, three places: a folder, fsspec's memory, an S3 server on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aim_tune.errors import ResourceError
from aim_tune.storage import Storage, open_storage


@pytest.fixture(params=["folder", "memory", "s3"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    if request.param == "folder":
        yield open_storage(tmp_path / "shared")
    elif request.param == "memory":
        yield open_storage(f"memory://{tmp_path.name}/shared")
    else:
        yield open_storage(request.getfixturevalue("bucket") + "/shared")


def test_what_was_put_is_given_and_a_second_put_replaces_it(storage: Storage) -> None:
    assert storage.get("a/b/1") is None
    storage.put("a/b/1", b"first")
    storage.put("a/b/1", b"second \x00\xff")
    assert storage.get("a/b/1") == b"second \x00\xff"


def test_many_are_given_in_the_order_asked(storage: Storage) -> None:
    for number in range(3):
        storage.put(f"a/{number}", b"%d" % number)
    assert storage.get_all(["a/2", "a/0", "a/1"]) == [b"2", b"0", b"1"]
    assert storage.get_all([]) == []
    with pytest.raises(ResourceError, match=r"cannot read a/9 .*not there any more"):
        storage.get_all(["a/0", "a/9"])


def test_a_name_is_created_once(storage: Storage) -> None:
    assert storage.create("segments/1", b"mine")
    assert not storage.create("segments/1", b"theirs")
    assert storage.get("segments/1") == b"mine"


def test_names_lists_what_lies_below_a_folder_and_nothing_beside_it(storage: Storage) -> None:
    for name in ("a/2", "a/deep/1", "ab/1", "a/10"):
        storage.put(name, b"x")
    assert storage.names("a") == ["a/10", "a/2", "a/deep/1"]
    assert storage.names("nowhere") == []


def test_drop_forgets_what_lies_below_a_folder_and_nothing_beside_it(storage: Storage) -> None:
    for name in ("a/1", "a/deep/1", "ab/1"):
        storage.put(name, b"x")
    storage.drop("a")
    storage.drop("nowhere")
    assert (storage.names("a"), storage.names("ab")) == ([], ["ab/1"])


def test_drop_forgets_one_name(storage: Storage) -> None:
    for name in ("a/1", "a/10"):
        storage.put(name, b"x")
    storage.drop("a/1")
    assert storage.names("a") == ["a/10"]


def test_another_opening_sees_what_the_first_wrote_later(storage: Storage) -> None:
    other = open_storage(storage.uri)
    assert other.names("a") == []
    storage.put("a/1", b"x")
    assert (other.names("a"), other.get("a/1")) == (["a/1"], b"x")


def test_a_folder_holds_no_half_file_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    storage = open_storage(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"cannot write a/1 .*No space left.*has room"):
        storage.put("a/1", b"x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_missing_bucket_is_named(bucket: str) -> None:
    with pytest.raises(ResourceError, match=r"s3://no-such-bucket/x: there is no such bucket"):
        open_storage("s3://no-such-bucket/x").put("a", b"1")


def test_a_scheme_without_its_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match="pip install 'adlfs'"):
        open_storage("abfs://container/x")


def test_an_unknown_scheme_lists_what_is_allowed() -> None:
    with pytest.raises(ResourceError, match="give a folder or s3://BUCKET/PREFIX"):
        open_storage("sftp2://host/x")
