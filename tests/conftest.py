"""What all tests share: one Ray for the whole session, started on first use."""

from __future__ import annotations

import importlib
import logging
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_registry() -> Iterator[None]:
    """No test counts a study in the user's real registry, not even in a process of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="aim_") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AIM_TUNE_REGISTRY", f"{folder}/test_data.jsonl")
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Ray with two CPUs; engines find it running and leave it open."""
    importlib.import_module("aim_tune.engine")  # sets the environment variables Ray reads at import
    with tempfile.TemporaryDirectory(prefix="aim_", ignore_cleanup_errors=True) as folder:
        _open_ray(folder)
        yield
        _ray().shutdown()


@pytest.fixture(scope="module")
def no_ray() -> Iterator[None]:
    """This process is connected to no Ray, for modules that start clusters; the session's comes back."""
    importlib.import_module("aim_tune.engine")
    was_open = _ray().is_initialized()
    _ray().shutdown()
    yield
    _ray().shutdown()
    if was_open:
        _open_ray(tempfile.mkdtemp(prefix="aim_"))


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    """The URL of an S3 server on this machine."""
    server = importlib.import_module("moto.server").ThreadedMotoServer("127.0.0.1", port=0)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(_s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new bucket; the environment tells every process how to reach it."""
    region = "eu-central-1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", _s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    name = f"lab-{uuid.uuid4().hex}"
    importlib.import_module("boto3").client("s3").create_bucket(
        Bucket=name, CreateBucketConfiguration={"LocationConstraint": region}
    )
    return f"s3://{name}"


def _open_ray(folder: str) -> None:
    _ray().init(
        num_cpus=2,
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        logging_level="CRITICAL",
        log_to_driver=False,
        _temp_dir=folder,
    )


def _ray() -> Any:
    return importlib.import_module("ray")
