"""What a cluster file must say to be safe: Ray's own schema, then our rules; all faults at once.

Offline and light: Ray is not imported, its JSON schema is read as a file. Each rule was a trap that
was seen (docs/cluster.md): an open dashboard, a head without authentication, a security group that
Ray widens, a Ray of another version. Does not ask the cloud whether names and rights exist there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonschema import Draft7Validator

from aim_tune.errors import Fault, unknown
from aim_tune.spec.yaml_io import Located, load_file

TOKEN = "~/.ray/auth_token"
MAKE_TOKEN = f"ray get-auth-token --generate >/dev/null; chmod 600 {TOKEN}"
CODE = "~/aim_tune/aim_tune"
"""Where env.sh expects the package on a node."""
LISTS = ("setup_commands", "head_setup_commands", "worker_setup_commands",
         "head_start_ray_commands", "worker_start_ray_commands")  # fmt: skip
START_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")
PROVIDER_KEYS = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips",
            "key_pair", "security_group", "cloudwatch"},
    "local": {"type", "head_ip", "worker_ips"},
    "gcp": {"type", "region", "availability_zone", "project_id", "use_internal_ips",
            "gcp_credentials", "cache_stopped_nodes"},
    "azure": {"type", "location", "resource_group", "subscription_id", "tags", "availability_zone",
              "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes", "subnet_mask",
              "msi_name", "msi_resource_group", "security_group", "vnet", "unique_id"},
}  # fmt: skip
PROVIDER_NEEDS = {
    "aws": ("region",),
    "local": ("head_ip", "worker_ips"),
    "gcp": ("region", "availability_zone", "project_id"),
    "azure": ("location", "resource_group"),
}
AWS_NEEDS = {
    "InstanceType": "such as g5.xlarge",
    "ImageId": "or Ray picks an old image",
    "SubnetIds": "the subnet of your security group",
    "SecurityGroupIds": "your own group; without it Ray opens port 22 to everyone",
    "IamInstanceProfile": "your own; without it Ray makes one with full EC2 and S3 rights",
}
AWS_KEYS = {
    *AWS_NEEDS, "BlockDeviceMappings", "CapacityReservationSpecification", "CpuOptions",
    "CreditSpecification", "DisableApiTermination", "EbsOptimized", "EnclaveOptions",
    "HibernationOptions", "InstanceInitiatedShutdownBehavior", "InstanceMarketOptions", "KeyName",
    "LaunchTemplate", "LicenseSpecifications", "MaintenanceOptions", "MetadataOptions",
    "Monitoring", "NetworkInterfaces", "Placement", "PrivateDnsNameOptions", "SubnetId",
    "TagSpecifications", "UserData",
}  # fmt: skip
"""Parameters of EC2 RunInstances that Ray passes on."""
PLACEHOLDER = re.compile(r"REPLACE\w*|<[A-Za-z_ -]+>|\bTODO\b")
RAY_PIN = re.compile(r"\bray(?:\[[a-z, ]*\])?\s*(==|>=|<=|~=|>|<|@)?\s*([0-9][\w.]*)?")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster file that has been read; what the rules look at."""

    tree: Located
    """The file with its lines."""
    config: dict[str, Any]
    """The same as plain values."""
    folder: Path
    """Where `ray up` is run: sources of file_mounts are relative to it."""
    faults: list[Fault] = field(default_factory=list)

    def fault(self, key: str, text: str) -> None:
        """Note a fault at `key` (dotted), on the line of the nearest part of it that is there."""
        self.faults.append(Fault(where=_where(self.tree, key), key=key, text=text))

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:
        """The value at the dotted `key`, None where it is absent or not of `kind`."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value if isinstance(value, kind) else None

    def commands(self, key: str) -> list[str]:
        """The texts of a command list."""
        return [c for c in self.get(key, list) or [] if isinstance(c, str)]

    @property
    def kind(self) -> str:
        """The provider: aws, local, gcp, azure, or what stands there."""
        return str(self.get("provider.type", str) or "")

    def workers(self) -> dict[str, dict[str, Any]]:
        """Node types by name that are mappings, the head's included."""
        types = self.get("available_node_types", dict) or {}
        return {name: t for name, t in types.items() if isinstance(t, dict)}


def check(path: Path, *, folder: Path | None = None) -> list[Fault]:
    """Everything that is wrong in the cluster file at `path`, in the order of its lines.

    `folder` is where `ray up` will be run (None: the current one).
    """
    cluster, faults = read(path, folder=folder)
    if cluster is None:
        return faults
    for rule in RULES:
        rule(cluster)
    return sorted(faults + cluster.faults, key=lambda f: _line(f.where))


def read(path: Path, *, folder: Path | None = None) -> tuple[Cluster | None, list[Fault]]:
    """The file and the faults of its YAML; None where nothing of it can be judged."""
    tree, faults = load_file(path)
    if not isinstance(tree.value, dict):
        text = "expected a mapping with cluster_name, provider, ..."
        return None, faults or [Fault(where=tree.where, key="", text=text)]
    config = tree.plain()
    return Cluster(tree=tree, config=config, folder=folder or Path.cwd()), faults


def storage_of(cluster: Cluster) -> str | None:
    """metadata.storage: the folder or bucket that all nodes share."""
    return cluster.get("metadata.storage", str)


def _schema(c: Cluster) -> None:
    """Ray's JSON schema, which is closed: an unknown key is a fault."""
    spec = find_spec("ray")
    if spec is None or spec.origin is None:
        return c.fault("cluster_name", "cannot be held against Ray's schema: install ray here too")
    schema_file = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    schema = json.loads(schema_file.read_text())
    config = dict(c.config)
    if c.kind == "local":
        config.pop("min_workers", None)  # Ray moves it elsewhere before it validates
    for error in Draft7Validator(schema).iter_errors(config):
        at = ".".join(map(str, error.absolute_path))
        if error.validator == "additionalProperties":
            known = sorted(error.schema.get("properties", {}))
            for name in sorted(set(error.instance) - set(known)):
                c.fault(f"{at}.{name}".lstrip("."), unknown("key", name, known))
        elif error.validator == "required":
            missing = [n for n in error.validator_value if n not in error.instance]
            name = next(n for n in missing if f"'{n}'" in error.message)
            c.fault(f"{at}.{name}".lstrip("."), "is missing; Ray requires it")
        else:
            c.fault(at, f"{error.message[:200]} (Ray's schema)")


def _provider(c: Cluster) -> None:
    """The schema leaves `provider` open, so that a typing error in it goes unseen."""
    if not c.kind:
        return
    if c.kind not in PROVIDER_KEYS:
        return c.fault("provider.type", unknown("provider", c.kind, list(PROVIDER_KEYS)))
    for name in c.config["provider"]:
        if name not in PROVIDER_KEYS[c.kind]:
            c.fault(f"provider.{name}", unknown("key", name, sorted(PROVIDER_KEYS[c.kind])))
    for name in PROVIDER_NEEDS[c.kind]:
        if not c.config["provider"].get(name):
            c.fault(f"provider.{name}", f"is missing; provider {c.kind} needs it")
    if c.kind != "local" and c.get("provider.cache_stopped_nodes", bool) is not False:
        text = "write false: stopped machines keep disks that cost money, and old state"
        c.fault("provider.cache_stopped_nodes", text)


def _addresses(c: Cluster) -> None:
    """Own machines: each address once."""
    if c.kind != "local":
        return
    if "available_node_types" in c.config:
        c.fault("available_node_types", "Ray refuses it for provider local; list worker_ips")
    workers = c.get("provider.worker_ips", list) or []
    head = c.get("provider.head_ip", str)
    if head in workers:
        c.fault("provider.worker_ips", f"{head} is the head; a worker needs another machine")
    for ip in sorted({str(w) for w in workers if workers.count(w) > 1}):
        if not PLACEHOLDER.search(ip):
            c.fault("provider.worker_ips", f"{ip} is listed twice")
    for name in ("min_workers", "max_workers"):
        count = c.get(name, int)
        if count is not None and count > len(workers):
            text = f"{count} are asked for, but worker_ips lists {len(workers)}"
            c.fault(name, text)


def _node_types(c: Cluster) -> None:
    """Clouds: which machines, and what Ray may count on in each."""
    if c.kind == "local" or not c.kind:
        return
    types = c.workers()
    if not types:
        return c.fault("available_node_types", "is missing; Ray would choose machines of its own")
    head = c.get("head_node_type", str)
    if head not in types:
        text = "is missing" if head is None else unknown("node type", head, list(types))
        c.fault("head_node_type", f"{text}; name one of available_node_types")
    for name, node in types.items():
        resources = node.get("resources")
        if not isinstance(resources, dict) or "CPU" not in resources:
            text = "write them out, such as {CPU: 4, GPU: 1}; Ray would have to ask the cloud"
            c.fault(f"available_node_types.{name}.resources", text)
        elif name == head and resources != {"CPU": 0}:
            text = "write {CPU: 0}: a training beside the driver and MLflow can end both"
            c.fault(f"available_node_types.{name}.resources", text)
    least = sum(n["min_workers"] for n in types.values() if isinstance(n.get("min_workers"), int))
    most = c.get("max_workers", int)
    if most is None:
        c.fault("max_workers", "is missing; it bounds what you can be billed for")
    elif least > most:
        c.fault("max_workers", f"{most} is less than the sum of all min_workers, {least}")


def _aws(c: Cluster) -> None:
    """EC2: names of parameters, and the two that Ray fills in unsafely."""
    if c.kind != "aws":
        return
    if "security_group" in c.config["provider"]:
        text = "Ray adds port 22 from 0.0.0.0/0 to it; use SecurityGroupIds in each node_config"
        c.fault("provider.security_group", text)
    for name, node in c.workers().items():
        at, given = f"available_node_types.{name}.node_config", node.get("node_config")
        if not isinstance(given, dict):
            continue
        for key in given:
            if key not in AWS_KEYS:
                c.fault(f"{at}.{key}", unknown("EC2 parameter", key, sorted(AWS_KEYS)))
        for key, why in AWS_NEEDS.items():
            if not given.get(key):
                c.fault(f"{at}.{key}", f"is missing; {why}")


def _lists(c: Cluster) -> None:
    """A command list that is left out is filled by Ray: nightly wheels, an open dashboard."""
    for name in LISTS:
        if name not in c.config:
            c.fault(name, "is missing; write it, even as [], or Ray puts commands of its own there")


def _starts(c: Cluster) -> None:
    """Each `ray start` with a token, the dashboard on the loopback."""
    for name in START_LISTS:
        commands = c.commands(name)
        if not commands:
            continue
        if not re.search(r"\bray stop\b", commands[0]):
            c.fault(name, "begin with `ray stop`: workers outlive `ray down` by up to a minute")
        starts = [x for x in commands if re.search(r"\bray start\b", x)]
        if not starts:
            c.fault(name, "there is no `ray start` in it")
        for command in starts:
            before = command.split("ray start")[0]
            if not re.search(r"\bRAY_AUTH_MODE=token\s", before):
                text = "write RAY_AUTH_MODE=token in front of `ray start`, or Ray runs open"
                c.fault(name, text)
            if re.search(r"--num-gpus", command):
                c.fault(name, "leave --num-gpus out: Ray counts the GPUs that are there")
        if any("0.0.0.0" in x for x in commands):
            c.fault(name, "0.0.0.0 opens a port to everyone; use 127.0.0.1 and a tunnel")
    _head_start(c)
    joins = " ".join(c.commands("worker_start_ray_commands"))
    if joins and "$RAY_HEAD_IP:6379" not in joins:
        c.fault("worker_start_ray_commands", "join the head by --address=$RAY_HEAD_IP:6379")


def _head_start(c: Cluster) -> None:
    name = "head_start_ray_commands"
    start = next((x for x in c.commands(name) if re.search(r"\bray start\b", x)), "")
    if not start:
        return
    if "--dashboard-host=127.0.0.1" not in start:
        c.fault(name, "add --dashboard-host=127.0.0.1: the jobs API runs anybody's code")
    if "--autoscaling-config=~/ray_bootstrap_config.yaml" not in start:
        c.fault(name, "add --autoscaling-config=~/ray_bootstrap_config.yaml, or no worker starts")
    if c.kind == "local" and "RAY_enable_autoscaler_v2=0" not in start.split("ray start")[0]:
        c.fault(name, "write RAY_enable_autoscaler_v2=0 in front: v2 starts one worker too few")
    if c.kind == "local" and "--num-cpus=0" not in start:
        c.fault(name, "add --num-cpus=0: a training beside the driver and MLflow can end both")


def _ray_pin(c: Cluster) -> None:
    """Laptop and nodes must run the same Ray."""
    pins = set()
    for name in LISTS[:3]:
        for command in c.commands(name):
            for sign, number in RAY_PIN.findall(command):
                if sign:
                    pins.add((name, sign, number))
    try:
        here = version("ray")
    except PackageNotFoundError:
        return  # the schema rule says so
    if not pins and c.commands("setup_commands"):
        c.fault("setup_commands", f"pin Ray, as this machine has it: 'ray[default,tune]=={here}'")
    for name, sign, number in sorted(pins):
        if (sign, number) != ("==", here):
            text = (f"ray{sign}{number} is not the Ray of this machine, {here}; they must be equal: "
                    f"write ==" + here)  # fmt: skip
            c.fault(name, text)


def _mounts(c: Cluster) -> None:
    """Every source is there; the code and the token among them."""
    mounts = c.get("file_mounts", dict) or {}
    for remote, local in mounts.items():
        if remote == TOKEN or not isinstance(local, str):
            continue
        source = c.folder / Path(local).expanduser()
        if not source.exists():
            text = f"{local} is not here; run from the folder of the project, or correct it"
            c.fault(f"file_mounts.{remote}", text)
        elif source.is_dir() and ((source / ".git").exists() or (source / ".venv").exists()):
            text = f"Ray would read all of {local}, .git and .venv too; name its folders one by one"
            c.fault(f"file_mounts.{remote}", text)
    if CODE not in mounts:
        c.fault("file_mounts", f'the code is missing; add "{CODE}": aim_tune')
    if TOKEN not in mounts:
        return c.fault("file_mounts", f'the token is missing; add "{TOKEN}": {TOKEN}')
    token = c.folder / Path(str(mounts[TOKEN])).expanduser()
    if not token.is_file():
        c.fault(f"file_mounts.{TOKEN}", f"there is no token on this machine; run: {MAKE_TOKEN}")
    elif token.stat().st_mode & 0o077:
        c.fault(f"file_mounts.{TOKEN}", f"others can read the token; run: chmod 600 {TOKEN}")


def _storage(c: Cluster) -> None:
    """One folder or bucket that all nodes share."""
    storage = storage_of(c)
    if not storage:
        text = (
            "is missing; name what all nodes share: a folder on a network disk, such as "
            "/mnt/shared/aim_tune, or s3://BUCKET/PREFIX"
        )
        return c.fault("metadata.storage", text)
    if not re.match(r"/|s3://[^/]+/.", storage):
        text = f"{storage}: give the absolute path of a mounted folder, or s3://BUCKET/PREFIX"
        return c.fault("metadata.storage", text)
    if re.match(r"/(tmp|root|home|var/tmp|dev/shm)(/|$)", storage):
        c.fault("metadata.storage", f"{storage} is on each node's own disk; use a shared mount")
    for command in c.commands("head_start_ray_commands"):
        used = re.search(r"mlflow\.sh\s+(\S+)", command)
        if used and used[1] != storage:
            text = f"MLflow keeps its artifacts in {used[1]}, but metadata.storage is {storage}"
            c.fault("head_start_ray_commands", text)


def _auth(c: Cluster) -> None:
    """The ssh key is there; no secret in the file."""
    if not c.get("auth.ssh_user", str):
        c.fault("auth.ssh_user", "is missing; the name to log in with, such as ubuntu")
    key = c.get("auth.ssh_private_key", str)
    if c.kind == "local" and not key:
        c.fault("auth.ssh_private_key", "is missing; such as ~/.ssh/id_ed25519")
    if key and not PLACEHOLDER.search(key) and not (c.folder / Path(key).expanduser()).is_file():
        c.fault("auth.ssh_private_key", f"{key} is not on this machine")
    for name in (*LISTS, "initialization_commands"):
        if any("RAY_AUTH_TOKEN=" in x for x in c.commands(name)):
            c.fault(name, f"a token does not belong in a file; it travels as {TOKEN}")


def _placeholders(c: Cluster) -> None:
    """What the person has to fill in."""
    for key, value in _leaves(c.config, ""):
        found = PLACEHOLDER.search(value) if isinstance(value, str) else None
        if found:
            c.fault(key, f"replace {found[0]}")


RULES: tuple[Callable[[Cluster], None], ...] = (
    _schema, _provider, _addresses, _node_types, _aws, _lists, _starts, _ray_pin, _mounts, _storage,
    _auth, _placeholders,
)  # fmt: skip


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{key}[{number}]")
    else:
        yield key, value


def _where(tree: Located, key: str) -> str:
    """file:line of `key`, or of the longest beginning of it that is there."""
    found, rest = tree, key
    while rest:
        if isinstance(found.value, list):
            number = re.match(r"[.\[]?(\d+)\]?", rest)
            if not number or int(number[1]) >= len(found.value):
                break
            found, rest = found.value[int(number[1])], rest[number.end() :].lstrip(".")
            continue
        names = found.value if isinstance(found.value, dict) else {}
        name = next((n for n in sorted(names, key=len, reverse=True)
                     if rest == n or rest.startswith((f"{n}.", f"{n}["))), None)  # fmt: skip
        if name is None:
            break
        found, rest = names[name], rest[len(name) :].lstrip(".")
    return found.where


def _line(where: str) -> int:
    number = where.rpartition(":")[2]
    return int(number) if number.isdigit() else 0
