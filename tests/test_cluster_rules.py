"""cluster.yaml, cluster-local.yaml and what `cluster check` says of ways to break them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from aim_tune.cluster_rules import MAKE_TOKEN, check
from aim_tune.spec.yaml_io import dump, load_plain, load_text

ROOT = Path(__file__).resolve().parents[1]
FILLED = {
    "REPLACE_WITH_REGION": "eu-central-1",
    "REPLACE_WITH_AMI_ID": "ami-0123456789abcdef0",
    "REPLACE_WITH_SUBNET_ID": "subnet-0123456789abcdef0",
    "REPLACE_WITH_SECURITY_GROUP_ID": "sg-0123456789abcdef0",
    "REPLACE_WITH_HEAD_PROFILE_ARN": "arn:aws:iam::123456789012:instance-profile/aim-head",
    "REPLACE_WITH_WORKER_PROFILE_ARN": "arn:aws:iam::123456789012:instance-profile/aim-worker",
    "REPLACE_WITH_EFS_HOST": "fs-0123.efs.eu-central-1.amazonaws.com",
    "REPLACE_WITH_HEAD_ADDRESS": "10.0.0.10",
    "REPLACE_WITH_WORKER_ADDRESS": "10.0.0.11",
    "REPLACE_WITH_USER": "me",
}
FILES = ("cluster.yaml", "cluster-local.yaml")
SHARED = ("metadata", "file_mounts", "rsync_exclude", "setup_commands", "worker_setup_commands",
          "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a token and an ssh key."""
    for name in (".ray/auth_token", ".ssh/id_ed25519"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.write_text("secret")
        path.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def filled(name: str) -> dict[str, Any]:
    text = (ROOT / name).read_text()
    for placeholder, value in FILLED.items():
        text = text.replace(placeholder, value)
    tree, faults = load_text(text, name)
    assert not faults
    return tree.plain()


def faults_of(folder: Path, config: dict[str, Any]) -> list[str]:
    path = folder / "changed.yaml"
    path.write_text(dump(config))
    return [f"{fault.key}: {fault.text}" for fault in check(path, folder=ROOT)]


@pytest.mark.parametrize("name", FILES)
def test_the_shipped_file_is_accepted_once_its_placeholders_are_filled(
    name: str, laptop: Path
) -> None:
    assert faults_of(laptop, filled(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_the_shipped_file_as_it_is_lacks_its_placeholders_and_nothing_else(
    name: str, laptop: Path
) -> None:
    faults = check(ROOT / name, folder=ROOT)
    assert {fault.text for fault in faults} == {
        f"replace {placeholder}"
        for placeholder in FILLED
        if placeholder in (ROOT / name).read_text()
    }
    lines = (ROOT / name).read_text().splitlines()
    for fault in faults:
        near = lines[int(fault.where.rpartition(":")[2]) - 1 :][:3]
        assert "REPLACE" in "".join(near), fault


@pytest.mark.parametrize("name", FILES)
def test_ray_itself_accepts_the_shipped_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(filled(name)))


def test_both_files_share_their_command_lists() -> None:
    aws, local = (load_plain(ROOT / name) for name in FILES)
    for key in SHARED:
        assert aws[key] == local[key], key


def test_the_pin_is_the_installed_ray_and_within_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    allowed = next(d for d in project["dependencies"] if d.startswith("ray["))
    pin = re.search(r"ray\[default,tune\]==([\d.]+)", (ROOT / "cluster.yaml").read_text())
    assert pin
    assert pin[1] == version("ray")
    low, high = re.findall(r"[\d.]+", allowed)
    assert low in pin[1]
    assert not pin[1].startswith(high)
    assert f"\nray=={pin[1]}\n" in (ROOT / "constraints.txt").read_text()


def test_the_shell_scripts_parse() -> None:
    for script in (ROOT / "cluster").glob("*.sh"):
        subprocess.run(["sh", "-n", str(script)], check=True)


Change = Callable[[dict[str, Any]], Any]
HEAD = "head_start_ray_commands"
WORKER = "worker_start_ray_commands"


def put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split("/")
    for name in path:
        config = config[name]
    config[last] = value


def drop(config: dict[str, Any], key: str) -> None:
    *path, last = key.split("/")
    for name in path:
        config = config[name]
    del config[last]


def swap(config: dict[str, Any], key: str, old: str, new: str) -> None:
    changed = [command.replace(old, new) for command in config[key]]
    assert changed != config[key]
    config[key] = changed


AWS: list[tuple[str, Change, str]] = [
    ("unknown key", lambda c: put(c, "max_worker", 4), r"^max_worker: .*did you mean 'max_workers'"),
    ("unknown key in a type", lambda c: put(c, "available_node_types/gpu/resource", {}),
     r"^available_node_types\.gpu\.resource: .*did you mean 'resources'"),
    ("unknown key in auth", lambda c: put(c, "auth/ssh_port", 2222), r"^auth\.ssh_port: unknown key"),
    ("no name", lambda c: drop(c, "cluster_name"), r"^cluster_name: is missing"),
    ("no region", lambda c: drop(c, "provider/region"), r"^provider\.region: is missing"),
    ("misspelt region", lambda c: put(c, "provider/reigon", "x"), r"^provider\.reigon: .*'region'"),
    ("unknown provider", lambda c: put(c, "provider/type", "awss"), r"^provider\.type: .*'aws'"),
    ("stopped machines kept", lambda c: put(c, "provider/cache_stopped_nodes", True),
     r"^provider\.cache_stopped_nodes: write false"),
    ("Ray's security group", lambda c: put(c, "provider/security_group", {"GroupName": "x"}),
     r"^provider\.security_group: .*SecurityGroupIds"),
    ("no security group", lambda c: drop(c, "available_node_types/gpu/node_config/SecurityGroupIds"),
     r"^available_node_types\.gpu\.node_config\.SecurityGroupIds: is missing"),
    ("no profile", lambda c: drop(c, "available_node_types/head/node_config/IamInstanceProfile"),
     r"^available_node_types\.head\.node_config\.IamInstanceProfile: is missing"),
    ("misspelt machine", lambda c: put(c, "available_node_types/gpu/node_config/InstanceTyp", "g"),
     r"^available_node_types\.gpu\.node_config\.InstanceTyp: .*'InstanceType'"),
    ("no resources", lambda c: put(c, "available_node_types/gpu/resources", {}),
     r"^available_node_types\.gpu\.resources: write them out"),
    ("trainings on the head", lambda c: put(c, "available_node_types/head/resources", {"CPU": 2}),
     r"^available_node_types\.head\.resources: write \{CPU: 0\}"),
    ("head of no type", lambda c: put(c, "head_node_type", "haed"), r"^head_node_type: .*'head'"),
    ("more at least than at most", lambda c: put(c, "available_node_types/gpu/min_workers", 9),
     r"^max_workers: 4 is less than the sum of all min_workers, 9"),
    ("no bound on the bill", lambda c: drop(c, "max_workers"), r"^max_workers: is missing"),
    ("no setup", lambda c: drop(c, "setup_commands"), r"^setup_commands: is missing"),
    ("no start of the head", lambda c: drop(c, HEAD), rf"^{HEAD}: is missing"),
    ("text for a list", lambda c: put(c, "setup_commands", "true"), r"^setup_commands: .*not of type"),
    ("open dashboard", lambda c: swap(c, HEAD, "127.0.0.1", "0.0.0.0"), rf"^{HEAD}: 0\.0\.0\.0"),
    ("dashboard by default", lambda c: swap(c, HEAD, "--dashboard-host=127.0.0.1", ""),
     rf"^{HEAD}: add --dashboard-host"),
    ("open head", lambda c: swap(c, HEAD, "RAY_AUTH_MODE=token", ""), rf"^{HEAD}: .*RAY_AUTH_MODE"),
    ("open worker", lambda c: swap(c, WORKER, "RAY_AUTH_MODE=token", ""), rf"^{WORKER}: .*RAY_AUTH"),
    ("token switched off behind", lambda c: swap(c, WORKER, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=token2"),
     rf"^{WORKER}: .*RAY_AUTH_MODE"),
    ("old Ray left running", lambda c: c[WORKER].pop(0), rf"^{WORKER}: begin with `ray stop`"),
    ("another Ray", lambda c: swap(c, "setup_commands", "==2.60.0", "==2.53.0"),
     r"^setup_commands: ray==2\.53\.0 is not the Ray of this machine"),
    ("any Ray", lambda c: swap(c, "setup_commands", "==2.60.0", ""), r"^setup_commands: pin Ray"),
    ("a nightly Ray", lambda c: swap(c, "setup_commands", "==2.60.0", " @ https://x/ray.whl"),
     r"^setup_commands: ray@ is not the Ray"),
    ("a placeholder", lambda c: put(c, "provider/region", "<your region>"),
     r"^provider\.region: replace <your region>"),
    ("a source that is not there", lambda c: put(c, "file_mounts/~.x", "gone"),
     r"^file_mounts\.~\.x: gone is not here"),
    ("the whole checkout", lambda c: put(c, "file_mounts", {**c["file_mounts"], "~x": "."}),
     r"^file_mounts\.~x: .*one by one"),
    ("no code", lambda c: c["file_mounts"].pop("~/aim_tune/aim_tune"), r"^file_mounts: the code is"),
    ("no token to nodes", lambda c: c["file_mounts"].pop("~/.ray/auth_token"), r"^file_mounts: the token"),
    ("a token in the file", lambda c: c["setup_commands"].append("export RAY_AUTH_TOKEN=1"),
     r"^setup_commands: a token does not belong"),
    ("no storage", lambda c: drop(c, "metadata"), r"^metadata\.storage: is missing"),
    ("storage on one disk", lambda c: put(c, "metadata/storage", "/home/me/results"),
     r"^metadata\.storage: .*own disk"),
    ("a bucket without a prefix", lambda c: put(c, "metadata/storage", "s3://mine"),
     r"^metadata\.storage: .*s3://BUCKET/PREFIX"),
    ("another vendor's bucket", lambda c: put(c, "metadata/storage", "gs://mine/x"),
     r"^metadata\.storage: .*s3://BUCKET/PREFIX"),
    ("two storages", lambda c: put(c, "metadata/storage", "/mnt/other"), rf"^{HEAD}: MLflow keeps"),
]  # fmt: skip
LOCAL: list[tuple[str, Change, str]] = [
    ("no head", lambda c: drop(c, "provider/head_ip"), r"^provider\.head_ip: is missing"),
    ("no workers", lambda c: put(c, "provider/worker_ips", []), r"^provider\.worker_ips: is missing"),
    ("head as worker", lambda c: put(c, "provider/worker_ips", ["10.0.0.10"]),
     r"^provider\.worker_ips: 10\.0\.0\.10 is the head"),
    ("a worker twice", lambda c: put(c, "provider/worker_ips", ["10.0.0.11"] * 2),
     r"^provider\.worker_ips: 10\.0\.0\.11 is listed twice"),
    ("types of machines", lambda c: put(c, "available_node_types", {}), r"^available_node_types: "),
    ("more than there are", lambda c: put(c, "min_workers", 3), r"^min_workers: 3 are asked for"),
    ("autoscaler v2", lambda c: swap(c, HEAD, "RAY_enable_autoscaler_v2=0", ""),
     rf"^{HEAD}: write RAY_enable_autoscaler_v2=0"),
    ("trainings on the head", lambda c: swap(c, HEAD, "--num-cpus=0", ""), rf"^{HEAD}: add --num-cpus"),
    ("no user", lambda c: drop(c, "auth/ssh_user"), r"^auth\.ssh_user: is missing"),
    ("no key", lambda c: put(c, "auth/ssh_private_key", "~/.ssh/other"), r"^auth\.ssh_private_key: "),
    ("wrong address", lambda c: swap(c, WORKER, "$RAY_HEAD_IP", "10.0.0.9"), rf"^{WORKER}: join the"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [("cluster.yaml", change, expected) for _, change, expected in AWS]
    + [("cluster-local.yaml", change, expected) for _, change, expected in LOCAL],
    ids=[f"aws: {what}" for what, *_ in AWS] + [f"local: {what}" for what, *_ in LOCAL],
)
def test_a_broken_file_is_refused_with_the_name_of_the_key(
    name: str, change: Change, expected: str, laptop: Path
) -> None:
    config = filled(name)
    change(config)
    faults = faults_of(laptop, config)
    assert any(re.search(expected, fault) for fault in faults), faults


def test_all_faults_are_told_at_once_on_their_lines(laptop: Path) -> None:
    path = laptop / "bad.yaml"
    path.write_text("cluster_name: x\nprovider:\n  type: aws\n  reigon: y\nauth: {ssh_prot: 1}\n")
    found = {(f.key, int(f.where.rpartition(":")[2])) for f in check(path, folder=ROOT)}
    assert {("provider.reigon", 4), ("provider.region", 2), ("auth.ssh_prot", 5)} <= found
    assert len(found) >= 12


def test_a_missing_token_is_answered_with_the_command_that_makes_one(laptop: Path) -> None:
    (laptop / "home/.ray/auth_token").unlink()
    [fault] = faults_of(laptop, filled("cluster-local.yaml"))
    assert (
        fault
        == f"file_mounts.~/.ray/auth_token: there is no token on this machine; run: {MAKE_TOKEN}"
    )


def test_a_token_that_others_can_read_is_refused(laptop: Path) -> None:
    (laptop / "home/.ray/auth_token").chmod(0o644)
    [fault] = faults_of(laptop, filled("cluster-local.yaml"))
    assert "others can read the token; run: chmod 600" in fault


@pytest.mark.parametrize("text", ["", "- a\n", "provider: [\n", "cluster_name: {a\n"])
def test_what_is_no_cluster_file_is_one_fault_and_no_traceback(text: str, laptop: Path) -> None:
    path = laptop / "none.yaml"
    path.write_text(text)
    assert check(path, folder=ROOT)


@pytest.mark.parametrize("odd", [None, 3, "x", [], {}, [None], {"a": None}, {"head": 3}])
def test_odd_values_are_faults_and_no_traceback(odd: Any, laptop: Path) -> None:
    for name in FILES:
        for key in filled(name):
            config = filled(name)
            config[key] = odd
            faults_of(laptop, config)


def test_the_check_does_not_import_ray() -> None:
    code = "import sys, aim_tune.cluster_rules; assert not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
