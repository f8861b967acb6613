"""The shipped cluster-local.yaml, for real: laptop, head and two workers with sshd on one machine.

Needs the make-believe ssh cluster (cluster_lab.py, beside the repository under shared/), root, and the
Debian packages openssh-server, iproute2, rsync; about four minutes each on two cores.
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

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("AIM_TUNE_SHARED_DATA", ROOT.parent / "shared" / "data")).parent
LAB = SHARED / "cluster_lab" / "cluster_lab.py"
STORAGE = "/mnt/shared/aim_tune"
BUDGET = ("recipe.steps=40", "protocol.blocks=3", "protocol.twins=1", "protocol.explore.trials=2",
          "protocol.explore.lag=1")  # fmt: skip
"""Three blocks run side by side: more than one worker, with two CPUs, takes."""


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
        for name in ("aim_tune", "cluster", "mlflow", "search_spaces", "constraints.txt"):
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
        folder = str(self.project) if host == "laptop" else "/root"
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
        self.on("laptop", "chmod", "600", "/root/.ray/auth_token")
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

    def search(self, name: str, *flags: str, out: str = STORAGE) -> subprocess.Popen[str]:
        sets = " ".join(f"--set {pair}" for pair in (*BUDGET, f"name={name}"))
        command = "python -m aim_tune.search search_spaces/quickstart.yaml --address auto"
        return self.start("laptop", "ray", "exec", "lab.yaml",
                          f"cd aim_tune && {command} --out {out} {sets} {' '.join(flags)}")  # fmt: skip

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        ledger = self.state / "shared" / "aim_tune" / name / "ledger.jsonl"
        lines = ledger.read_text().split("\n")[:-1] if ledger.is_file() else []
        return [r for r in map(json.loads, lines) if r["event"] == kind]

    def places(self, name: str) -> list[str]:
        """Where trainings have started, in their order; results that are reused have no place."""
        return [e["node"] for e in self.events(name, "training_started") if e["node"]]

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
    assert hosts.on("worker1", "stat", "-c", "%a", "/root/.ray/auth_token").strip() == "600"

    # a search over both workers, one of which loses its Ray in the middle
    process = hosts.search("one")
    hosts.wait_for("one", 6, process)
    while not {"worker1", "worker2"} <= set(hosts.places("one")):
        assert process.poll() is None, process.communicate()[0][-4000:]
        time.sleep(0.2)
    victim = hosts.places("one")[-1]
    hosts.on(victim, "bash", "-c", "kill -9 $(pgrep -x raylet)")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    assert hosts.events("one", "job_lost")
    done = hosts.events("one", "training_done")
    trainings = len({(e["position"], e["arm"]) for e in done})
    assert len(done) == trainings
    assert all(e["result"]["status"] == "ok" for e in done)
    runs = hosts.runs("one")
    assert len(runs) == trainings + 1  # and the verdict
    assert set(runs.values()) == {1}
    assert {state for _, state in runs} == {"FINISHED"}

    # what is likely to go wrong is said in a sentence
    process = hosts.search("two", out="/root/private")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "cannot read /root/private/two: give --out a folder on a disk" in " ".join(said.split())
    process = hosts.search("two", "--set resources.gpu=1")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "one trial needs 1 CPUs and 1 GPUs" in " ".join(said.split())
    hosts.on("worker2", "bash", "-c", "echo '# changed' >> ~/aim_tune/aim_tune/twin.py")
    process = hosts.search("two")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "worker2 has other code of aim_tune than head" in " ".join(said.split())
    hosts.on("worker2", "sed", "-i", "$d", "/root/aim_tune/aim_tune/twin.py")

    # the laptop sees and fetches
    assert f"one: complete, {trainings} trainings done" in hosts.verb("status", "lab.yaml")
    command = "echo $$ > /root/ui.pid; exec python -m aim_tune.cluster ui lab.yaml"
    tunnel = hosts.start("laptop", "bash", "-c", command)
    assert tunnel.stdout is not None
    assert tunnel.stdout.readline() == "MLflow: http://127.0.0.1:5000\n"
    assert hosts.on("laptop", "curl", "-s", "http://127.0.0.1:5000/health") == "OK"
    hosts.on("laptop", "bash", "-c", "kill -INT $(cat /root/ui.pid)")
    tunnel.communicate(timeout=60)
    hosts.verb("fetch", "lab.yaml", "one", "--to", "/root/results")
    hosts.on("laptop", "python", "-m", "aim_tune.retrain", "/root/results/one/best_config.yaml",
                    "--fail-unless-equal", "--tracking", "off")  # fmt: skip

    hosts.down()


def test_a_head_that_loses_power_costs_no_finished_training(hosts: Hosts) -> None:
    hosts.up()
    process = hosts.search("three")
    hosts.wait_for("three", 7, process)
    hosts.lab("kill", "head")
    process.communicate(timeout=300)
    before = {(e["position"], e["arm"]) for e in hosts.events("three", "training_done")}
    hosts.lab("revive", "head")
    hosts.on("laptop", "ray", "down", "-y", "lab.yaml")
    hosts.on("laptop", "ray", "up", "-y", "lab.yaml")
    process = hosts.search("three")
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said[-4000:]
    started = Counter((e["position"], e["arm"]) for e in hosts.events("three", "training_started"))
    done = hosts.events("three", "training_done")
    assert "three: complete" in hosts.verb("status", "lab.yaml")
    assert {started[key] for key in before} == {1}  # none that was finished ran again
    trainings = len({(e["position"], e["arm"]) for e in done})
    assert len(done) == trainings
    runs = hosts.runs("three")  # the new head's MLflow was empty: the ledger has filled it
    assert len(runs) == trainings + 1
    assert set(runs.values()) == {1}
    hosts.down()


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
pathlib.Path("/root/ray_bootstrap_config.yaml").write_text(json.dumps(config))
env = {**os.environ, "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "0"}
subprocess.run(["ray", "start", "--head", "--num-cpus=0", "--object-store-memory=100000000",
                "--autoscaling-config=/root/ray_bootstrap_config.yaml"], env=env, check=True)
from aim_tune import search

sys.exit(search.main(sys.argv[1:]))
'''  # fmt: skip


def test_a_search_starts_machines_from_none(hosts: Hosts) -> None:
    """Ray's own make-believe cloud: the head has no CPU, the autoscaler may start two machines."""
    (hosts.project / "autoscaled.py").write_text(AUTOSCALED)
    flags = [f"--set={pair}" for pair in (*BUDGET[:3], "protocol.explore.trials=1")]
    study = str(hosts.project / "search_spaces" / "quickstart.yaml")
    said = hosts.on("head", "python", str(hosts.project / "autoscaled.py"), study, "--address", "auto",
                    "--out", "/root/out", "--tracking", "off", *flags)  # fmt: skip
    assert "the autoscaler starts one" in " ".join(said.split())
    assert "best_config.yaml" in said
