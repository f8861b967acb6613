"""What all tests share: one Ray for the whole session, started on first use."""

from __future__ import annotations

import html
import importlib
import importlib.util
import logging
import re
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run on two cores (pytest-xdist), a file's tests stay together, and all that share a Ray do."""
    for item in items:
        shares = {"ray_session", "no_ray"} & set(getattr(item, "fixturenames", ()))
        item.add_marker(pytest.mark.xdist_group("ray" if shares else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def _own_registry() -> Iterator[None]:
    """No test counts a study in the user's real registry, not even in a process of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="aim_") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("AIM_TUNE_REGISTRY", f"{folder}/test_data.jsonl")
        yield


TINY = """
name: tiny
backbone: {name: small_cnn, width: 8}
data: {name: digits, image_size: 16, train_images: 60, val_images: 40}
arms: [baseline, aim]
recipe: {steps: 6, batch_size: 16, evaluations: 3, augment: [flip]}
shared: {lr: {log_uniform: [1.0e-3, 1.0e-1]}}
addon: {name: memory, memory_shape: [2, 2, 8]}
protocol: {explore: {trials: 0}, blocks: 1, twins: 1, confirm: 1}
"""


@pytest.fixture(scope="session")
def invariant() -> Any:
    """benchmarks/invariant.py: what holds after every fault."""
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "invariant.py"
    spec = importlib.util.spec_from_file_location("invariant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/tiny of a real study of a second; copy what is to be changed."""
    search = importlib.import_module("aim_tune.search")
    home = tmp_path_factory.mktemp("tiny")
    (home / "tiny.yaml").write_text(TINY)
    options = ["--engine", "in_process", "--tracking", "off", "--quiet"]
    assert search.main([str(home / "tiny.yaml"), "--out", str(home / "results"), *options]) == 0
    return home / "results" / "tiny"


@pytest.fixture(scope="session")
def _ray_folder() -> Iterator[str]:
    """Where the session's Ray keeps its files."""
    with tempfile.TemporaryDirectory(prefix="aim_", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="session")
def ray_session(_ray_folder: str) -> Iterator[None]:
    """Ray with two CPUs; engines find it running and leave it open."""
    importlib.import_module("aim_tune.engine")  # sets the environment variables Ray reads at import
    _open_ray(_ray_folder)
    yield
    _ray().shutdown()


@pytest.fixture(scope="module")
def no_ray(_ray_folder: str) -> Iterator[None]:
    """This process is connected to no Ray, for modules that start clusters; the session's comes back."""
    importlib.import_module("aim_tune.engine")
    was_open = _ray().is_initialized()
    _ray().shutdown()
    yield
    _ray().shutdown()
    if was_open:
        _open_ray(_ray_folder)


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


class Browser:
    """A headless Chromium, driven by its command line: nothing to install but the browser."""

    def __init__(self, program: str, profile: Path) -> None:
        self.program, self.profile = program, profile

    def dom(self, url: str, patience_ms: int = 20_000) -> str:
        """A page's HTML after its scripts have run for `patience_ms` of the page's clock."""
        done = subprocess.run(
            [self.program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
             "--disable-background-networking", "--disable-component-update",
             "--window-size=1600,2400", f"--user-data-dir={self.profile}",
             f"--virtual-time-budget={patience_ms}", "--dump-dom", url],
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        return done.stdout

    def text(self, url: str, patience_ms: int = 20_000) -> str:
        """What can be read on a page, the values of its fields included."""
        page = re.sub(r"<(script|style).*?</\1>", "", self.dom(url, patience_ms), flags=re.DOTALL)
        fields = " ".join(re.findall(r'value="([^"]*)"', page))
        text = re.sub(r"<[^>]+>", " ", page)
        return " ".join(html.unescape(f"{text} {fields}").split())


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """A browser of this machine with a fresh profile."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    return Browser(program, tmp_path / "profile")
