"""The engine on a cluster: `ray_tune`, once every node has been looked at.

Before the first training each node reads a probe in the storage and hashes its code: without a shared
storage a training that lost its node begins anew, and two versions of the code must not mix.
A cluster of `ray up` that has no room yet is not too small: its autoscaler starts machines for trials
that wait, so slots are counted from the machines it may start. Nodes that join later are not probed.
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aim_tune.engine.ray_tune import RayTune, connected, packed, room, too_small
from aim_tune.engine.resume import code_hashes
from aim_tune.errors import ResourceError
from aim_tune.spec.study import Resources, Study
from aim_tune.spec.values import short_hash
from aim_tune.storage import Storage, open_storage

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` leaves on the head, in JSON: the cluster file as the autoscaler reads it."""
JOIN_S = 90.0
"""How long own machines may take to join after `ray up` (measured: 16 to 24 s)."""
LOOK_S = 60.0
"""How long a node may take to answer: the first process on a node starts in 2 to 10 s."""


@contextmanager
def opened(
    study: Study,
    *,
    address: str,
    storage: Storage,
    slots: int | None = None,
    say: Callable[[str], object] = print,
    bootstrap: Path = BOOTSTRAP,
) -> Iterator[RayTune]:
    """The engine on the cluster at `address`, whose nodes share `storage` and the code.

    Raises ResourceError, with what to do, where the cluster is not there, can never hold a trial, or
    a node cannot read `storage` or has other code.
    """
    with connected(study.resources, slots, address):
        most = _most(study.resources, _autoscaler(bootstrap), say)
        if most < 1:
            raise ResourceError(too_small(study.resources))
        check_nodes(storage)
        yield packed(study, slots, most, say)


def storage_of_the_cluster(bootstrap: Path = BOOTSTRAP) -> str | None:
    """metadata.storage of the cluster file that started this head; None where this is no such head."""
    storage = _autoscaler(bootstrap).get("metadata", {}).get("storage")
    return storage if isinstance(storage, str) else None


def _autoscaler(bootstrap: Path) -> dict[str, Any]:
    """The configuration of the autoscaler; {} where this is not the head of a `ray up`."""
    try:
        config = json.loads(bootstrap.expanduser().read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _most(resources: Resources, config: Mapping[str, Any], say: Callable[[str], object]) -> int:
    """How many trials fit now, or when the autoscaler has started all that it may."""
    if config.get("provider", {}).get("type") == "local":
        _await_workers(int(config.get("max_workers", 0)), say)
    now, later = room(resources), growth(resources, config)
    if now < 1 <= later:
        say("No node has room for a trial yet; the autoscaler starts one, which takes minutes.")
    return max(now, later)


def growth(resources: Resources, config: Mapping[str, Any]) -> int:
    """Trials that fit all machines the autoscaler may start; 0 where it does not say.

    >>> gpu = {"resources": {"CPU": 4, "GPU": 1}, "max_workers": 3}
    >>> growth(Resources(cpu=2, gpu=0.5), {"available_node_types": {"gpu": gpu}, "max_workers": 2})
    4
    """
    types = config.get("available_node_types", {})
    need = {"CPU": resources.cpu, "GPU": resources.gpu}
    fits: list[int] = []
    for name, node in types.items():
        each = min(int(node["resources"].get(k, 0) / v) for k, v in need.items() if v > 0)
        if name != config.get("head_node_type"):
            fits += [each] * int(node.get("max_workers", 0))
    return sum(sorted(fits, reverse=True)[: int(config.get("max_workers", 0))])


def _await_workers(count: int, say: Callable[[str], object]) -> None:
    """Until `count` own machines have joined; goes on with fewer after a while."""
    end, said = time.monotonic() + JOIN_S, False
    while (here := len(_alive()) - 1) < count and time.monotonic() < end:
        if not said:
            say(f"{here} of {count} workers have joined; waiting for the others.")
            said = True
        time.sleep(1)
    if here < count:
        say(f"Going on with {here} of {count} workers; `ray status` on the head says more.")


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def check_nodes(storage: Storage) -> None:
    """Raise ResourceError unless every node reads `storage` and has the code of this process."""
    word = uuid.uuid4().hex
    probe = f".probe-{word}"
    storage.put(probe, word.encode())
    try:
        asked = [_ask(node["NodeID"], storage.uri, probe) for node in _alive()]
        answers = [_answer(reference) for reference in asked]
    finally:
        storage.drop(probe)
    judge([answer for answer in answers if answer], word=word, storage=storage.uri)


def judge(answers: Sequence[Mapping[str, str]], *, word: str, storage: str) -> None:
    """Raise ResourceError where a node did not read `word` or has other code than this process."""
    blind = sorted(a["host"] for a in answers if a["word"] != word)
    if blind:
        raise ResourceError(
            f"{', '.join(blind)} cannot read {storage}{_why(answers)}: give --storage a folder on a disk "
            "that all nodes share, or s3://BUCKET/PREFIX (metadata.storage of the cluster file)."
        )
    code = short_hash(code_hashes())
    other = sorted(a["host"] for a in answers if a["code"] != code)
    if other:
        raise ResourceError(
            f"{', '.join(other)} has other code of aim_tune than {platform.node()}: copy it again with "
            "`ray up -y FILE` (`ray rsync-up` reaches the head only)."
        )


def _why(answers: Sequence[Mapping[str, str]]) -> str:
    reasons = sorted({a["reason"] for a in answers if a.get("reason")})
    return f" ({'; '.join(reasons)})" if reasons else ""


def _ask(node_id: str, storage: str, probe: str) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    return _look.options(scheduling_strategy=where).remote(storage, probe)


def _answer(reference: Any) -> dict[str, str] | None:
    """What a node says; None where it went away meanwhile."""
    try:
        return dict(ray.get(reference, timeout=LOOK_S))
    except ray.exceptions.RayTaskError as error:
        raise ResourceError(
            f"a node cannot load aim_tune ({error.cause}): is the code there? `ray up -y FILE` copies it."
        ) from None
    except ray.exceptions.RayError:
        return None


@ray.remote(num_cpus=0, max_retries=0)
def _look(storage: str, probe: str) -> dict[str, str]:
    """On a node: what it reads in the probe, and its code."""
    word, reason = b"", ""
    try:
        word = open_storage(storage).get(probe) or b""
    except ResourceError as error:
        reason = str(error)
    code = short_hash(code_hashes())
    return {"host": platform.node(), "word": word.decode(), "code": code, "reason": reason}
