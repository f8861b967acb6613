"""The shipped cluster-local.yaml, for real: laptop, head and two workers with sshd on one machine.

Needs the make-believe ssh cluster (cluster_lab.py, beside the repository under shared/), root, and the
Debian packages openssh-server, iproute2, rsync; two to eight minutes each on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aim_tune.ledger_copy import read_copy
from aim_tune.storage import open_storage

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("AIM_TUNE_SHARED_DATA", ROOT.parent / "shared" / "data")).parent
LAB = SHARED / "cluster_lab" / "cluster_lab.py"
HOME = "/root"
"""Of the make-believe machines' only user."""
BUCKET = "s3://lab/aim_tune"
SERVER = "http://10.77.0.2:9000"
"""An S3 server, on the laptop: the only make-believe machine that never loses power."""
BUDGET = ("recipe.steps=400", "protocol.blocks=6", "protocol.twins=1", "protocol.explore.trials=2",
          "protocol.explore.lag=1")  # fmt: skip
"""Blocks run side by side: more than one worker, with two CPUs, takes. About a minute in all."""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LAB.is_file(), reason="cluster_lab.py is not here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="the make-believe cluster needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("/usr/sbin/sshd", "ip", "rsync"))),
        reason="apt-get install openssh-server iproute2 rsync",
    ),
]


class Hosts:
    """The make-believe machines."""

    def __init__(self, folder: Path) -> None:
        self.state, self.project = folder / "lab", folder / "project"
        self.state.mkdir()
        self.project.mkdir()
        for name in ("aim_tune", "cluster", "mlflow", "search_spaces", "constraints.txt",
                     "pyproject.toml"):  # fmt: skip
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, self.project / name)
        text = (ROOT / "cluster-local.yaml").read_text()
        for old, new in (
            ("REPLACE_WITH_HEAD_ADDRESS", "10.77.0.10"),
            ("[REPLACE_WITH_WORKER_ADDRESS]", "[10.77.0.11, 10.77.0.12]"),
            ("REPLACE_WITH_USER", "root"),
        ):
            text = text.replace(old, new)
        (self.project / "lab.yaml").write_text(text)

    def lab(self, *arguments: str) -> str:
        command = [sys.executable, str(LAB), "--dir", str(self.state), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, host: str, *command: str) -> subprocess.Popen[str]:
        folder = str(self.project) if host == "laptop" else HOME
        line = [
            sys.executable,
            str(LAB),
            "--dir",
            str(self.state),
            "exec",
            "--cwd",
            folder,
            host,
            "--",
        ]
        return subprocess.Popen([*line, *command], stdin=subprocess.DEVNULL, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def on(self, host: str, *command: str, code: int | None = 0) -> str:
        process = self.start(host, *command)
        said, _ = process.communicate(timeout=600)
        assert code is None or process.returncode == code, said[-4000:]
        return said

    def verb(self, *arguments: str, code: int = 0) -> str:
        return self.on("laptop", "python", "-m", "aim_tune.cluster", *arguments, code=code)

    def up(self) -> None:
        """As docs/cluster.md says: a token, the check, `ray up`."""
        self.on("laptop", "bash", "-c", "ray get-auth-token --generate >/dev/null")
        self.on("laptop", "chmod", "600", f"{HOME}/.ray/auth_token")
        assert "no fault found" in self.verb("check", "lab.yaml")
        self.on("laptop", "ray", "up", "-y", "lab.yaml")

    def down(self) -> None:
        """`ray down`, after which no Ray is left within 90 s."""
        self.on("laptop", "ray", "down", "-y", "lab.yaml")
        end = time.monotonic() + 90
        while any("raylet" in self.on(host, "ps", "-A", "-o", "comm=")
                  for host in ("head", "worker1", "worker2")):  # fmt: skip
            assert time.monotonic() < end
            time.sleep(2)

    def search(self, name: str, *flags: str) -> subprocess.Popen[str]:
        sets = " ".join(f"--set {pair}" for pair in (*BUDGET, f"name={name}"))
        command = "python -m aim_tune.search search_spaces/quickstart.yaml --address auto"
        return self.start("laptop", "ray", "exec", "lab.yaml",
                          f"cd aim_tune && {command} {sets} {' '.join(flags)}")  # fmt: skip

    def refusal(self, name: str, *flags: str) -> str:
        """What a search says that refuses to start. How long it took is printed: 10 s are wanted."""
        process, began = self.search(name, *flags), time.monotonic()
        said, _ = process.communicate(timeout=300)
        print(f"{time.monotonic() - began:.1f} s: {flags}")
        assert process.returncode != 0, said[-4000:]
        return " ".join(said.split())

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        """As the copy in the shared folder has them: whole requests."""
        ledger, _ = read_copy(open_storage(self.state / "shared" / "aim_tune"), name)
        return [r for r in map(json.loads, ledger.splitlines()) if r["event"] == kind]

    def places(self, name: str) -> list[str]:
        """Where trainings have started, in their order; results that are reused have no place."""
        return [e["node"] for e in self.events(name, "training_started") if e["node"]]

    def busy(self, name: str) -> str | None:
        """A node that trains now, by the ledger on the head."""
        path = f"{HOME}/aim_tune/results/{name}/ledger.jsonl"
        said = self.on("head", "cat", path, code=None)  # not there at first
        places: dict[tuple[str, str], str] = {}
        for line in said.splitlines():
            event = json.loads(line) if line.endswith("}") else {"event": "cut"}
            if event["event"] == "training_started":
                places[event["position"], event["arm"]] = event["node"]
            elif event["event"] == "training_done":
                places.pop((event["position"], event["arm"]), None)
        return next(reversed(places.values()), None)

    def wait_for(self, name: str, done: int, process: subprocess.Popen[str]) -> None:
        end = time.monotonic() + 180
        while len(self.events(name, "training_done")) < done:
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < end
            time.sleep(0.2)

    def runs(self, name: str) -> Counter[tuple[str, str]]:
        """Finished MLflow runs of a study, by what they are."""
        code = (
            "import json, mlflow\n"
            f"found = mlflow.search_runs(experiment_names=['aim_tune/{name}'], output_format='list')\n"
            "print(json.dumps([[r.info.run_name, r.info.status] for r in found]))"
        )
        said = self.on("head", "bash", "-c", f'. ~/aim_tune/cluster/env.sh && python -c "{code}"')
        return Counter((run, state) for run, state in json.loads(said.splitlines()[-1]))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        made.lab("up", "--workers", "2", "--shared", "--path", str(Path(sys.executable).parent),
                 "--bind", str(made.project), "--bind", str(ROOT))  # fmt: skip
        yield made
    finally:
        made.lab("down")
    assert not (made.state / "state.json").exists()


def port_answers(hosts: Hosts, host: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(('10.77.0.10', {port}), timeout=3)"
    return "Traceback" not in hosts.on(host, "python", "-c", code, code=None)


def jobs_api(hosts: Hosts, header: str) -> str:
    command = f"curl -s -o /dev/null -w '%{{http_code}}' {header} http://127.0.0.1:8265/api/jobs/"
    return hosts.on("head", "bash", "-c", command)


def test_from_ray_up_to_ray_down(hosts: Hosts) -> None:
    """All that docs/cluster.md promises, in one run: a worker's Ray and the head are lost on the way."""
    # no token on the laptop: said before anything starts
    assert "there is no token on this machine; run: ray get-auth-token" in hosts.verb(
        "check", "lab.yaml", code=2
    )
    hosts.up()

    # closed to others, open through the head's own loopback with the token
    assert port_answers(hosts, "worker1", 6379)
    assert not port_answers(hosts, "worker1", 8265)
    assert not port_answers(hosts, "worker1", 5000)
    assert jobs_api(hosts, "") == "401"
    assert jobs_api(hosts, '-H "Authorization: Bearer $(cat ~/.ray/auth_token)"') == "200"
    assert hosts.on("worker1", "stat", "-c", "%a", f"{HOME}/.ray/auth_token").strip() == "600"

    # a search over both workers, one of which loses its Ray in the middle, then the head its power
    process = hosts.search("one")
    while (victim := hosts.busy("one")) is None:
        assert process.poll() is None, process.communicate()[0][-4000:]
    hosts.on(victim, "bash", "-c", "kill -9 $(pgrep -x raylet)")
    while not hosts.events("one", "job_lost"):
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.2)
    hosts.wait_for("one", 15, process)
    hosts.lab("kill", "head")
    process.communicate(timeout=300)
    before = {(e["position"], e["arm"]) for e in hosts.events("one", "training_done")}
    hosts.lab("revive", "head")
    hosts.on("laptop", "ray", "down", "-y", "lab.yaml")
    hosts.on("laptop", "ray", "up", "-y", "lab.yaml")
    process = hosts.search("one")  # the same command
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    assert {"worker1", "worker2"} <= set(hosts.places("one"))
    done = hosts.events("one", "training_done")
    assert all(e["result"]["status"] == "ok" for e in done)
    trainings = len({(e["position"], e["arm"]) for e in done})
    assert len(done) == trainings
    first_end = {(e["position"], e["arm"]): e["time"] for e in reversed(done)}
    later = [e for e in hosts.events("one", "training_started")
             if e["time"] > first_end[e["position"], e["arm"]]]  # fmt: skip
    assert before
    assert later == []  # nothing that was finished ran again
    runs = hosts.runs("one")  # the new head's MLflow was empty: the ledger has filled it
    assert len(runs) == trainings + 1  # and the verdict
    assert set(runs.values()) == {1}
    assert {state for _, state in runs} == {"FINISHED"}

    # the laptop sees and fetches
    assert f"one: complete, {trainings} trainings done" in hosts.verb("status", "lab.yaml")
    command = f"echo $$ > {HOME}/ui.pid; exec python -m aim_tune.cluster ui lab.yaml"
    tunnel = hosts.start("laptop", "bash", "-c", command)
    assert tunnel.stdout is not None
    assert tunnel.stdout.readline() == "MLflow: http://127.0.0.1:5000\n"
    assert hosts.on("laptop", "curl", "-s", "http://127.0.0.1:5000/health") == "OK"
    hosts.on("laptop", "bash", "-c", f"kill -INT $(cat {HOME}/ui.pid)")
    tunnel.communicate(timeout=60)
    hosts.verb("fetch", "lab.yaml", "one", "--to", f"{HOME}/results")
    hosts.on("laptop", "python", "-m", "aim_tune.retrain", f"{HOME}/results/one/best_config.yaml",
                    "--fail-unless-equal", "--tracking", "off")  # fmt: skip

    hosts.down()


def test_what_is_likely_to_go_wrong_is_said_in_a_sentence(hosts: Hosts) -> None:
    hosts.up()
    assert f"cannot read {HOME}/private: give --storage a folder on a disk" in hosts.refusal(
        "two", f"--storage {HOME}/private"
    )
    assert "one trial needs 1 CPUs and 1 GPUs" in hosts.refusal("two", "--set resources.gpu=1")
    hosts.on("worker2", "bash", "-c", "echo '# changed' >> ~/aim_tune/aim_tune/twin.py")
    assert "worker2 has other code of aim_tune than head" in hosts.refusal("two")
    hosts.on("worker2", "sed", "-i", "$d", f"{HOME}/aim_tune/aim_tune/twin.py")
    hosts.on("laptop", "sed", "-i", "s/]==2.60.0/]==2.59.0/", "lab.yaml")
    assert "2.59.0" in hosts.verb("check", "lab.yaml", code=2)


def test_a_bucket_is_storage_enough_for_a_head_that_loses_power(hosts: Hosts) -> None:
    """The same without a shared folder: all that the new head has is the bucket."""
    server = hosts.start("laptop", "moto_server", "-H", "10.77.0.2", "-p", "9000")
    try:
        file = hosts.project / "lab.yaml"
        lines = [f"export AWS_ENDPOINT_URL={SERVER} AWS_ACCESS_KEY_ID=lab AWS_SECRET_ACCESS_KEY=lab",
                 "export AWS_DEFAULT_REGION=us-east-1"]  # fmt: skip
        with (hosts.project / "cluster" / "env.sh").open("a") as env:
            env.write("\n".join([*lines, ""]))
        text = file.read_text().replace("/mnt/shared/aim_tune", BUCKET)
        file.write_text("\n".join(
            line for line in text.splitlines() if "mountpoint" not in line and "mkdir" not in line
        ))  # fmt: skip
        bucket = "import boto3; boto3.client('s3').create_bucket(Bucket='lab')"
        make = f'{lines[0]} && {lines[1]} && python -c "{bucket}"'
        hosts.on("laptop", "bash", "-c", make)
        hosts.up()
        process = hosts.search("four")
        end = time.monotonic() + 180
        while "four: unfinished, 9 " not in (seen := hosts.verb("status", "lab.yaml")):
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < end, seen
        hosts.lab("kill", "head")
        process.communicate(timeout=300)
        hosts.lab("revive", "head")
        hosts.on("laptop", "ray", "down", "-y", "lab.yaml")
        hosts.on("laptop", "ray", "up", "-y", "lab.yaml")
        process = hosts.search("four")
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said[-4000:]
        assert "Going on in" in said
        hosts.verb("fetch", "lab.yaml", "four", "--to", f"{HOME}/results")
        ledger = hosts.on("laptop", "cat", f"{HOME}/results/four/ledger.jsonl")
        ends = Counter(
            (e["position"], e["arm"])
            for e in map(json.loads, ledger.splitlines())
            if e["event"] == "training_done"
        )
        assert set(ends.values()) == {1}
        hosts.down()
    finally:
        hosts.on("laptop", "pkill", "-f", "moto_server", code=None)
        server.communicate(timeout=30)


AUTOSCALED = '''
import json, os, pathlib, subprocess, sys

lists = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
         "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
         "rsync_exclude", "rsync_filter")
worker = {"resources": {"CPU": 1, "object_store_memory": 10**8}, "max_workers": 2}
config = {
    "cluster_name": "fake_multinode", "max_workers": 2, "upscaling_speed": 1.0, "auth": {},
    "idle_timeout_minutes": 0.2, "docker": {}, "file_mounts": {}, "head_node_type": "head",
    "file_mounts_sync_continuously": False, **{name: [] for name in lists},
    "provider": {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
                 "disable_launch_config_check": True, "head_resources": {"CPU": 0}},
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
        "cpu": {**worker, "node_config": {}, "min_workers": 0},
    },
}
bootstrap = pathlib.Path.home() / "ray_bootstrap_config.yaml"
bootstrap.write_text(json.dumps(config))
env = {**os.environ, "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
subprocess.run(["ray", "start", "--head", "--num-cpus=0", "--object-store-memory=100000000",
                f"--autoscaling-config={bootstrap}"], env=env, check=True)
from aim_tune import search

sys.exit(search.main(sys.argv[1:]))
'''  # fmt: skip


def test_a_search_starts_machines_from_none(hosts: Hosts) -> None:
    """Ray's own make-believe cloud: the head has no CPU, the autoscaler may start two machines."""
    (hosts.project / "autoscaled.py").write_text(AUTOSCALED)
    small = (
        "recipe.steps=40",
        "protocol.blocks=3",
        "protocol.twins=1",
        "protocol.explore.trials=1",
    )
    flags = [f"--set={pair}" for pair in small]
    study = str(hosts.project / "search_spaces" / "quickstart.yaml")
    said = hosts.on("head", "python", str(hosts.project / "autoscaled.py"), study, "--address", "auto",
                    "--out", f"{HOME}/out", "--tracking", "off", *flags)  # fmt: skip
    assert "the autoscaler starts one" in " ".join(said.split())
    assert "best_config.yaml" in said
