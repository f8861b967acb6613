"""Where a store is: its URI, whether somebody answers there, what people may be shown of it.

Speaks HTTP to a server's /health and /version only; MLflow itself is store.py's.
"""

from __future__ import annotations

import base64
import fcntl
import os
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from aim_tune.errors import ResourceError

PROBE_S = 4.0
"""How long a server may take to answer before it counts as not there, seconds."""


def default_uri(results: Path) -> str:
    """The sqlite store of a results folder; absolute, as MLflow would look in the current folder."""
    return f"sqlite:///{results.resolve()}/mlflow.db"


def shown(uri: str) -> str:
    """`uri` without a password.

    >>> shown("http://me:secret@host:5000/x")
    'http://me:***@host:5000/x'
    """
    parts = urlsplit(uri)
    if not parts.password:
        return uri
    head, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{head.partition(':')[0]}:***@{host}"))


def probe(uri: str) -> None:
    """Return if the server of an http(s) URI answers within PROBE_S. Raises ResourceError if not.

    Any answer counts: a proxy in front of MLflow may know no /health.
    """
    if not is_server(uri):
        return
    try:
        urllib.request.urlopen(f"{address(uri)}/health", timeout=PROBE_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        raise unreachable(uri, error) from None


def page(uri: str) -> str:
    """Where the pages of a store are: the server itself, or where mlflow/serve.sh puts them.

    >>> page("http://me:secret@host:5000/"), page("sqlite:////tmp/mlflow.db")
    ('http://host:5000/', 'http://127.0.0.1:5000/')
    """
    return f"{address(uri)}/" if is_server(uri) else "http://127.0.0.1:5000/"


def with_driver(uri: str) -> str:
    """A PostgreSQL URI that names the driver installed here: SQLAlchemy 2.0 and 2.1 expect another one
    where none is named. Other URIs as they are.

    >>> with_driver("sqlite:////tmp/mlflow.db")
    'sqlite:////tmp/mlflow.db'
    """
    scheme, mark, rest = uri.partition("://")
    driver = next((d for d in ("psycopg2", "psycopg") if find_spec(d)), None)
    if scheme not in ("postgres", "postgresql") or driver is None:
        return uri
    return f"postgresql+{driver}{mark}{rest}"


def is_server(uri: str) -> bool:
    """Whether a URI names a server, not a file or database."""
    return urlsplit(uri).scheme in ("http", "https")


def address(uri: str) -> str:
    """A server's URI without user, password, query and last slash."""
    parts = urlsplit(uri)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="")
    return urlunsplit(bare).rstrip("/")


def unreachable(uri: str, reason: object) -> ResourceError:
    """The error for a store that does not answer: which one, why, what to do."""
    advice = (
        "Start the server, or correct the address"
        if is_server(uri)
        else "See that its folder exists and can be written, or name another store"
    )
    text = " ".join(str(reason).split())[:300]
    return ResourceError(
        f"no MLflow at {shown(uri)}: {text}. {advice}. With --tracking optional a search goes on "
        "without it; MLflow can be filled from the ledger later."
    )


@contextmanager
def first_use_lock(uri: str) -> Iterator[None]:
    """One process at a time: several that make one sqlite schema at once ruin the file for good."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI; None for other stores.

    >>> sqlite_path("sqlite:////tmp/mlflow.db")
    PosixPath('/tmp/mlflow.db')
    """
    head, mark, path = uri.partition(":///")
    return Path(path) if mark and head.startswith("sqlite") and path else None


def write_ahead(uri: str) -> None:
    """Let the sqlite file of `uri` be read while it is written (write-ahead log): a page that is open in the
    browser never locks a search out, and a run costs a third of the time on a busy disk.

    The file keeps it. One that is in use, or on a disk that cannot, stays as it is.
    """
    path = sqlite_path(uri)
    if path is not None:
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(path)) as base:
            base.execute("PRAGMA journal_mode=WAL")


def server_version(uri: str) -> str:
    """MLflow's version at a server; one with a login is asked with the user's name and password, from the
    URI or MLFLOW_TRACKING_USERNAME and _PASSWORD. Raises OSError where it does not say."""
    request = urllib.request.Request(f"{address(uri)}/version")
    parts = urlsplit(uri)
    name = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    if name:
        word = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
        pair = base64.b64encode(f"{unquote(name)}:{unquote(word)}".encode()).decode()
        request.add_header("Authorization", f"Basic {pair}")
    with urllib.request.urlopen(request, timeout=PROBE_S) as answer:
        return str(answer.read(100).decode())
