"""Bytes under names, in a folder or in a bucket: what all machines of a cluster share.

Choice: five small operations, because object stores cannot append, rename or lock. A folder writes under
a temporary name, syncs and renames; everything else (s3://, gs://, abfs://) goes through fsspec. Knows
nothing of ledgers and checkpoints. Names are relative paths; what begins with a dot is invisible.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec

from aim_tune.errors import ResourceError

EXTRAS = {"s3": "aim-tune[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""URI scheme -> what `pip install` must be given for it."""
TIMEOUT_S = 20


class Storage(Protocol):
    """What `open_storage` gives. Raises ResourceError where the place cannot be reached."""

    uri: str

    def put(self, name: str, content: bytes) -> None:
        """Store durably: afterwards `get` gives all of it, or put has raised."""

    def create(self, name: str, content: bytes) -> bool:
        """`put`, unless the name is taken: then False, and nothing is changed."""

    def get(self, name: str) -> bytes | None:
        """The content; None where there is none."""

    def get_all(self, names: Sequence[str]) -> list[bytes]:
        """The contents, in this order; at once where the place can. Raises where one is missing."""

    def names(self, folder: str) -> list[str]:
        """Every name below `folder`, sorted."""

    def drop(self, name: str) -> None:
        """Forget what is stored under `name` and everything below it."""


def open_storage(uri: str | Path) -> Storage:
    """The storage at a folder's path or a URI such as s3://BUCKET/PREFIX; nothing is written yet.

    Raises ResourceError where the library for the URI's scheme is missing, naming the package.
    """
    scheme, found, _ = str(uri).partition("://")
    if not found or scheme == "file":
        return FolderStorage(str(uri).removeprefix("file://"))
    return ObjectStorage(str(uri))


class FolderStorage:
    """A folder, on this machine's disk or on one that several machines mount."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()  # workers have other current folders
        self.uri = str(self.root)

    def put(self, name: str, content: bytes) -> None:
        """See Storage."""
        self._write(name, content, os.replace)

    def create(self, name: str, content: bytes) -> bool:
        """See Storage."""
        try:
            self._write(name, content, os.link)  # unlike a rename, fails where the name is taken
        except FileExistsError:
            return False
        return True

    def get(self, name: str) -> bytes | None:
        """See Storage."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreachable(self.uri, "read", name, error) from error

    def get_all(self, names: Sequence[str]) -> list[bytes]:
        """See Storage."""
        return [_there(self.get(name), name, self.uri) for name in names]

    def names(self, folder: str) -> list[str]:
        """See Storage."""
        files = [p for p in (self.root / folder).rglob("*") if p.is_file()]
        return sorted(p.relative_to(self.root).as_posix() for p in files if p.name[0] != ".")

    def drop(self, name: str) -> None:
        """See Storage."""
        if (self.root / name).is_dir():
            shutil.rmtree(self.root / name, ignore_errors=True)
        else:
            (self.root / name).unlink(missing_ok=True)

    def _write(self, name: str, content: bytes, give_name: Any) -> None:
        final = self.root / name
        temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}.tmp")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            give_name(temporary, final)
            _sync_folder(final.parent)
        except OSError as error:
            if isinstance(error, FileExistsError) and final.is_file():
                raise
            raise _unreachable(self.uri, "write", name, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


class ObjectStorage:
    """A bucket, through fsspec. Credentials and AWS_ENDPOINT_URL are found as the vendor's tools do."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        scheme = uri.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}  # other machines write there too
        if scheme == "s3":
            waits = {"connect_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S}
            options["config_kwargs"] = {**waits, "retries": {"max_attempts": 3}}
        try:
            self._files, root = fsspec.core.url_to_fs(self.uri, **options)
        except (ImportError, ValueError) as error:
            package = EXTRAS.get(scheme)
            hint = f"pip install '{package}'" if package else "give a folder or s3://BUCKET/PREFIX"
            raise ResourceError(f"storage {uri} cannot be opened ({error}): {hint}") from error
        self._root = PurePosixPath(root)

    def put(self, name: str, content: bytes) -> None:
        """See Storage."""
        self._do("write", name, lambda path: self._files.pipe_file(path, content))

    def create(self, name: str, content: bytes) -> bool:
        """See Storage."""
        try:
            self._do(
                "write", name, lambda path: self._files.pipe_file(path, content, mode="create")
            )
        except FileExistsError:
            return False
        return True

    def get(self, name: str) -> bytes | None:
        """See Storage."""
        try:
            return bytes(self._do("read", name, self._files.cat_file))
        except FileNotFoundError:
            return None

    def get_all(self, names: Sequence[str]) -> list[bytes]:
        """See Storage."""
        paths = [str(self._root / name) for name in names]
        found = self._do(
            "read", "", lambda root: self._files.cat(paths, on_error="omit") if paths else {}
        )
        return [
            _there(found.get(path), name, self.uri) for path, name in zip(paths, names, strict=True)
        ]

    def names(self, folder: str) -> list[str]:
        """See Storage."""
        found = self._do("list", folder, self._files.find)
        names = (PurePosixPath(path).relative_to(self._root) for path in found)
        return sorted(name.as_posix() for name in names if name.name[0] != ".")

    def drop(self, name: str) -> None:
        """See Storage."""
        for each in self.names(name):
            self._do("delete", each, self._files.rm_file)

    def _do(self, verb: str, name: str, action: Any) -> Any:
        try:
            return action(str(self._root / name))
        except (FileNotFoundError, FileExistsError):
            if verb == "write" and not self._bucket_is_there():
                raise ResourceError(
                    f"cannot write to {self.uri}: there is no such bucket"
                ) from None
            raise
        except Exception as error:  # each vendor's library has exceptions of its own
            if _taken(error):
                raise FileExistsError(name) from None
            raise _unreachable(self.uri, verb, name, error) from error

    def _bucket_is_there(self) -> bool:
        return bool(self._files.exists(self._root.parts[0]))


def _there(content: bytes | None, name: str, uri: str) -> bytes:
    if content is None:
        raise _unreachable(uri, "read", name, FileNotFoundError("it is not there any more"))
    return content


def _taken(error: Exception) -> bool:
    return "PreconditionFailed" in str(error) or "412" in str(getattr(error, "response", ""))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unreachable(uri: str, verb: str, name: str, error: Exception) -> ResourceError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ResourceError(
        f"cannot {verb} {name} in the storage {uri}: {reason}. Nothing recorded so far is lost: see "
        "that it can be reached, has room and lets you write, then run the same command again."
    )
