"""The verb around `ray up FILE`: is the file safe, where is the browser page, bring results home.

Four things Ray's own commands do not do: `check` (offline, under a second), `ui` (tunnel, wait, print
the URL), `status` (nodes and studies), `fetch` (a study's results). All else is Ray's: `ray up`,
`ray exec`, `ray down`. Talks to the cluster only through `ray exec` and `ray rsync-down`, so by ssh.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from aim_tune import options
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, UserError

PAGES = {"MLflow": 5000, "Ray dashboard": 8265}
UI_WAIT_S = 90.0
"""The longest wait for a page to answer through the tunnel."""
RAY = "ray"
FETCHED = "~/.aim_tune/fetched"
"""Where on the head results are gathered before they are copied home."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.cluster",
        description="Helps around `ray up FILE`; docs/cluster.md shows the whole way.",
        epilog="Exit codes: 0 done, 2 bad input or no cluster.",
    )
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB")
    one = verbs.add_parser("check", help="is the file safe and complete? offline, under a second")
    _file(one)
    one = verbs.add_parser("ui", help="tunnel to MLflow on the head; runs until Ctrl-C")
    _file(one)
    one.add_argument("--dashboard", action="store_true", help="the Ray dashboard too")
    one = verbs.add_parser("status", help="nodes that have joined, studies and how far they are")
    _file(one)
    one = verbs.add_parser("fetch", help="copy a study's results here, without checkpoints")
    _file(one)
    one.add_argument("name", metavar="NAME", help="the study's name")
    one.add_argument("--to", type=Path, default=Path("results"), metavar="DIR",
                     help="goes to DIR/NAME (results)")  # fmt: skip
    one = verbs.add_parser("progress", help="on the head: how far the studies in a storage are")
    one.add_argument("storage", metavar="STORAGE")
    one = verbs.add_parser("gather", help="on the head: copy a study's results out of a storage")
    one.add_argument("storage", metavar="STORAGE")
    one.add_argument("name", metavar="NAME")
    one.add_argument("folder", type=Path, metavar="FOLDER")
    return p


def _file(p: argparse.ArgumentParser) -> None:
    p.add_argument("file", type=Path, metavar="FILE", help="such as cluster.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    try:
        if args.verb == "check":
            return check(args.file)
        if args.verb == "ui":
            return ui(args.file, dashboard=args.dashboard)
        if args.verb == "status":
            return status(args.file)
        if args.verb == "fetch":
            return fetch(args.file, args.name, args.to)
        if args.verb == "gather":
            return gather(args.storage, args.name, args.folder)
        return progress(args.storage)
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def check(file: Path) -> int:
    """Print every fault of `file`; the exit code."""
    from aim_tune.cluster_rules import check as faults_of

    faults = faults_of(file)
    if not faults:
        print(f"{file}: no fault found. Next: ray up -y {file}")
        return EXIT_DONE
    lines = [
        f"{len(faults)} fault{'s' * (len(faults) != 1)} in the cluster file:",
        *map(str, faults),
    ]
    raise UserError("\n  ".join(lines))


def ui(file: Path, *, dashboard: bool = False) -> int:
    """Open the tunnel, print the addresses once they answer, stay until Ctrl-C."""
    _storage(file)  # a file that cannot be read is said before anything starts
    pages = {name: port for name, port in PAGES.items() if dashboard or name == "MLflow"}
    for name, port in pages.items():
        if _taken(port):
            raise UserError(f"port {port} of this machine, for {name}, is in use; end what uses it")
    forward = [part for port in pages.values() for part in ("--port-forward", str(port))]
    command = [_ray(), "exec", str(file), *forward, "sleep infinity"]
    tunnel = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)  # fmt: skip
    try:
        for name, port in pages.items():
            url = f"http://127.0.0.1:{port}"
            _await(url, tunnel, name)
            print(f"{name}: {url}", flush=True)
        print("Ctrl-C closes the tunnel.", flush=True)
        tunnel.communicate()
        raise UserError(
            f"the tunnel ended by itself; is the cluster still up? ray exec {file} true"
        )
    finally:
        tunnel.terminate()
        tunnel.wait()


def status(file: Path) -> int:
    """Print Ray's view of the nodes, then the studies in the storage."""
    folder = shlex.quote(_storage(file))
    print(_on_head(file, f"ray status && python3 -m aim_tune.cluster progress {folder}"), end="")
    return EXIT_DONE


def fetch(file: Path, name: str, to: Path) -> int:
    """Copy STORAGE/name to to/name, without checkpoints (rsync_exclude of the file)."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{name!r} is not the name of a study; `cluster status {file}` lists them")
    storage, target = _storage(file), to / name
    source = f"{FETCHED}/{name}"
    _on_head(
        file,
        f"python3 -m aim_tune.cluster gather {shlex.quote(storage)} {shlex.quote(name)} {source}",
    )
    target.mkdir(parents=True, exist_ok=True)
    failed = _run([_ray(), "rsync-down", str(file), f"{source}/", f"{target}/"])[1]
    if failed:
        if not any(target.iterdir()):
            target.rmdir()
        raise UserError(f"{source} of the head could not be copied. The last lines:\n{failed}")
    best = target / "best_config.yaml"
    print(f"{target} is here: {', '.join(sorted(p.name for p in target.iterdir()))}")
    if best.is_file():
        print(f"Next: python -m aim_tune.retrain {best}")
    return EXIT_DONE


def gather(place: str, name: str, folder: Path) -> int:
    """Copy a study's ledger and pages from a storage into a folder of this machine."""
    from aim_tune import ledger_copy
    from aim_tune.storage import open_storage

    print("\n".join(ledger_copy.gather(open_storage(place), name, folder.expanduser())))
    return EXIT_DONE


def progress(place: str) -> int:
    """One line per study in a storage, from its ledger."""
    from aim_tune.ledger_copy import gather, studies
    from aim_tune.storage import open_storage

    storage = open_storage(place)
    for name in studies(storage):
        with tempfile.TemporaryDirectory() as folder:
            gather(storage, name, Path(folder))
            print(f"{name}: {_how_far(Path(folder) / 'ledger.jsonl')}")
    return EXIT_DONE


def _how_far(ledger: Path) -> str:
    from aim_tune.ledger import read_history
    from aim_tune.spec import Study
    from aim_tune.stats.amounts import study_status

    history = read_history(ledger)
    study = Study.from_dict((history.declared or {})["study"])
    done = sum(t.done for t in history.trainings.values())
    word = str(history.verdict["verdict"]) if history.verdict else "no verdict yet"
    with ledger.open("rb") as lines:
        last = json.loads(deque(lines, maxlen=1)[0])
    age = max(0, round(time.time() - last["time"]))
    status = study_status(study, history)
    return f"{status}, {done} trainings done, {word}, last record {age} s ago"


def _storage(file: Path) -> str:
    """metadata.storage of `file`; raises where it is not there."""
    from aim_tune.cluster_rules import read, storage_of

    cluster, faults = read(file)
    storage = storage_of(cluster) if cluster else None
    if storage is None:
        raise UserError("\n".join(map(str, faults)) or f"{file}: metadata.storage is missing")
    return storage


def _ray() -> str:
    beside = Path(sys.executable).with_name(RAY)
    found = str(beside) if beside.is_file() else shutil.which(RAY)
    if found is None:
        raise UserError("the command `ray` is not here; install the project: make .venv/installed")
    return found


def _run(command: list[str]) -> tuple[str, str]:
    """(stdout, the last lines of all output where the command failed, else "")."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
    return done.stdout, (tail or f"exit code {done.returncode}") if done.returncode else ""


def _on_head(file: Path, command: str) -> str:
    """What `command` prints on the head."""
    first, last = "aim-tune-output-begins", "aim-tune-output-ends"  # Ray logs before and behind it
    wrapped = f"echo {first} && {command} && echo {last}"
    out, failed = _run([_ray(), "exec", str(file), wrapped])
    lines = re.sub(r"\r|\x1b\[[0-9;]*m", "", out).splitlines()
    if failed or first not in lines or last not in lines:
        raise UserError(f"the head does not answer; is the cluster up? ray up -y {file}\n{failed}")
    return "\n".join(lines[lines.index(first) + 1 : lines.index(last)]) + "\n"


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _await(url: str, tunnel: subprocess.Popen[str], name: str) -> None:
    """Until `url` answers, whatever it says."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + UI_WAIT_S
    while time.monotonic() < end:
        if tunnel.poll() is not None:
            said = tunnel.communicate()[0].strip().splitlines()[-8:]
            raise UserError(
                "the tunnel could not be opened; is the cluster up?\n" + "\n".join(said)
            )
        try:
            direct.open(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it answers; the dashboard asks for the token
        except OSError:
            time.sleep(0.5)
    raise UserError(f"{name} does not answer on the head; see ~/mlflow/serve.log there")


if __name__ == "__main__":
    sys.exit(main())
