"""The engine on a cluster: room that an autoscaler may yet make, and nodes that must agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aim_tune.engine import nodes, ray_tune
from aim_tune.engine.resume import code_hashes
from aim_tune.errors import ResourceError
from aim_tune.spec.study import Resources
from aim_tune.spec.values import short_hash
from aim_tune.storage import open_storage

AWS: dict[str, Any] = {
    "provider": {"type": "aws"},
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 2},
        "cpu": {"resources": {"CPU": 8}, "max_workers": 9},
    },
}


@pytest.mark.parametrize(
    ("cpu", "gpu", "expected"),
    [
        (1, 1, 2),  # two GPU machines, one trial each
        (1, 0.5, 4),
        (2, 0, 12),  # three of the larger machines: max_workers bounds them all
        (1, 2, 0),  # a trial never spans machines
        (16, 0, 0),
    ],
)
def test_the_trials_that_fit_the_machines_an_autoscaler_may_start(
    cpu: int, gpu: float, expected: int
) -> None:
    assert nodes.growth(Resources(cpu=cpu, gpu=gpu), AWS) == expected


def test_without_an_autoscaler_nothing_grows(tmp_path: Path) -> None:
    assert nodes._autoscaler(tmp_path / "none") == {}
    (tmp_path / "odd").write_text("not: json")
    assert nodes._autoscaler(tmp_path / "odd") == {}
    assert nodes.growth(Resources(cpu=1, gpu=0), {}) == 0


def answer(host: str, **other: str) -> dict[str, str]:
    return {"host": host, "word": "w", "code": short_hash(code_hashes()), **other}


def test_nodes_that_see_the_storage_and_have_the_code_pass() -> None:
    nodes.judge([answer("head"), answer("worker1")], word="w", storage="/s")


def test_a_node_that_cannot_read_the_storage_is_named_and_the_key_to_set() -> None:
    with pytest.raises(
        ResourceError, match=r"^worker1 cannot read /s: give --storage .*metadata\.storage"
    ):
        nodes.judge([answer("head"), answer("worker1", word="")], word="w", storage="/s")


def test_why_a_node_cannot_read_a_bucket_is_said() -> None:
    with pytest.raises(
        ResourceError, match=r"^worker1 cannot read s3://b \(no credentials\): give"
    ):
        nodes.judge(
            [answer("worker1", word="", reason="no credentials")], word="w", storage="s3://b"
        )


def test_the_storage_of_the_cluster_file_is_found_on_its_head(tmp_path: Path) -> None:
    head = tmp_path / "bootstrap"
    assert nodes.storage_of_the_cluster(head) is None
    head.write_text(json.dumps({"metadata": {"storage": "/mnt/shared/aim_tune"}}))
    assert nodes.storage_of_the_cluster(head) == "/mnt/shared/aim_tune"


def test_a_node_with_other_code_is_named_and_how_to_copy_it() -> None:
    with pytest.raises(ResourceError, match=r"^worker2 has other code .*`ray up -y FILE`"):
        nodes.judge([answer("worker2", code="x"), answer("head")], word="w", storage="/s")


@pytest.fixture(scope="module")
def address(no_ray: None) -> Iterator[str]:
    """A cluster as `ray up` makes it: a head without CPUs, and one worker."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


@pytest.mark.kills
def test_every_node_of_a_real_cluster_is_asked_and_the_probe_removed(
    address: str, tmp_path: Path, lab: Any
) -> None:
    with nodes.opened(
        lab.study(), address=address, storage=open_storage(tmp_path), bootstrap=tmp_path
    ) as engine:
        assert engine.slots == 1
        assert len(nodes._alive()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.kills
def test_room_that_the_autoscaler_can_make_counts(address: str, tmp_path: Path, lab: Any) -> None:
    config, said = tmp_path / "bootstrap", list[str]()
    config.write_text(json.dumps(AWS))
    needy = lab.replace(lab.study(), resources=Resources(cpu=1, gpu=1))
    with nodes.opened(
        needy, address=address, storage=open_storage(tmp_path), bootstrap=config, say=said.append
    ) as engine:
        assert engine.slots == 2
    assert "the autoscaler starts one" in said[0]


@pytest.mark.kills
def test_room_that_nobody_can_make_is_refused(address: str, tmp_path: Path, lab: Any) -> None:
    needy = lab.replace(lab.study(), resources=Resources(cpu=1, gpu=1))
    with (
        pytest.raises(ResourceError, match=r"1 GPUs \(resources\.cpu, resources\.gpu\)"),
        nodes.opened(needy, address=address, storage=open_storage(tmp_path), bootstrap=tmp_path),
    ):
        pass


def test_gpus_of_one_training_must_be_in_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"Alive": True, "Resources": {"CPU": 8, "GPU": 1}}
    monkeypatch.setattr(ray_tune.ray, "nodes", lambda: [node, node])
    monkeypatch.setattr(ray_tune.ray, "cluster_resources", lambda: {"CPU": 16, "GPU": 2})
    assert ray_tune.room(Resources(cpu=1, gpu=1)) == 2
    two = Resources(cpu=1, gpu=2)
    assert ray_tune.room(two) == nodes.growth(two, AWS) == 0
    assert "2 GPUs (1 in the machine with most of them). Ask for less" in ray_tune.too_small(two)
    big = {**node, "Resources": {"CPU": 8, "GPU": 5}}
    monkeypatch.setattr(ray_tune.ray, "nodes", lambda: [node, big])
    assert ray_tune.room(two) == 2
