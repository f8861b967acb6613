"""One training on several devices: processes that take the same steps, each on a slice of the batch.

Rank 0 is the trial's own process. It starts the others as new interpreters (not forked, so that CUDA works;
not by multiprocessing, so that a script without `if __name__ == "__main__"` does), tells them what to do on
their standard input and keeps it open: where that ends, the leader is gone, and they end at once. They meet
in a file in a private folder, and talk on the loopback interface alone. Devices and backend are a value, so
that the same code runs with gloo on CPUs; it has not been run on several real GPUs.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aim_tune.errors import ResourceError
from aim_tune.training.batches import WHOLE, Part

START_S = 300.0
"""How long a rank may take to be there: an interpreter, torch from a cold disk."""
PATIENCE_S = 1800.0
"""How long ranks wait for each other: a validation pass, a slow checkpoint."""
LAST_WORDS_S = 5.0
"""How long rank 0 waits, once the others do not answer, to learn why."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The devices of one training, one rank each, and what their processes talk through."""

    devices: tuple[str, ...]
    backend: str
    """As torch names it; must carry tensors on the CPU, too."""

    @classmethod
    def of_gpus(cls, count: int) -> World:
        """The first GPUs that this process sees."""
        devices = tuple(f"cuda:{i}" for i in range(count))
        return cls(devices=devices, backend="cpu:gloo,cuda:nccl")


class RankFailed(RuntimeError):
    """Another rank could not go on; the text is its own."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        """failed or oom."""


class RankLost(ResourceError):
    """Another rank died without a word. No result of the training: it may be tried again."""


class Group:
    """The processes that take the steps of one training together. This one is alone: the usual case."""

    part = WHOLE
    """This process's slice of each batch."""

    @property
    def rank(self) -> int:
        """0 in the process that decides, measures and reports."""
        return self.part.rank

    def call(self, model: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        """What a training step calls, where `call` runs `model`."""
        return call

    def mean(self, values: Tensor) -> list[float]:
        """The mean over the ranks, the same in all of them."""
        found: list[float] = values.tolist()  # waits for the device
        return found

    def first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives in rank 0, in every rank; the others wait for it."""
        return make()

    def cause(self, error: Exception) -> Exception:
        """Why a step went wrong: `error`, or what another rank died of."""
        return error

    def give_up(self) -> None:
        """This process takes no further step with the others."""


ALONE = Group()


class Ranks(Group):
    """Several of them, as one of them sees it. Made by `leading` and `following`."""

    def __init__(self, world: World, rank: int, others: Others | None = None) -> None:
        self.world = world
        self.part = Part(rank, len(world.devices))
        self._others = others
        self.broken = False
        """Whether the ranks no longer take the same steps."""

    def give_up(self) -> None:
        """See `Group`."""
        self.broken = True

    def call(self, model: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        """With gradients averaged over the ranks, from rank 0's weights on. Parameters that a step does not
        use are allowed, as they are on one device."""
        device = torch.device(self.world.devices[self.rank])
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            model if call is model else _Called(model, call),
            device_ids=ids,
            find_unused_parameters=True,
        )

    def mean(self, values: Tensor) -> list[float]:
        """See `Group`. Raises what another rank has ended of."""
        self.check()
        total = values.clone()
        dist.all_reduce(total)
        means: list[float] = (total / self.part.size).tolist()  # waits for the device
        self.check()  # what a broken connection left there is no loss
        return means

    def first(self, make: Callable[[], Any]) -> Any:
        """See `Group`. Raises what another rank has ended of."""
        self.check()
        found = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(found, device=torch.device("cpu"))
        return found[0]

    def check(self) -> None:
        """In rank 0: raise where another rank has ended; its own exception, or RankLost."""
        if self._others is not None:
            self._others.check()

    def cause(self, error: Exception) -> Exception:
        """See `Group`."""
        if self._others is None or isinstance(error, torch.OutOfMemoryError):
            return error
        try:
            self._others.check(LAST_WORDS_S)
        except (RankFailed, RankLost) as other:
            return other
        return error


class _Called(nn.Module):
    """`call`, with the parameters of the network that it runs."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, images: Tensor) -> Tensor:
        """What the call gives."""
        result: Tensor = self._call(images)
        return result


# --- rank 0 -----------------------------------------------------------------------------------


@contextmanager
def leading(world: World, command: str, task: Mapping[str, Any]) -> Iterator[Ranks]:
    """The other ranks, started and met; they are gone at the end, whatever happened.

    Each runs `command`, Python text that calls `following`, and is given `task`. Raises RankLost where one
    does not come.
    """
    with ExitStack() as ends:
        folder = Path(tempfile.mkdtemp(prefix="aim_ranks_"))
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        others = Others(world, folder)
        ends.callback(others.end)
        others.start(command, task)
        others.await_all()
        with _met(world, folder, 0, others):
            group = Ranks(world, 0, others)
            yield group
            if group.broken:
                others.end()
            others.finishing = True


class Others:
    """The processes of the ranks beside 0."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._folder = world, folder
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self.finishing = False
        """Whether all that was to be done together is done."""

    def start(self, command: str, task: Mapping[str, Any]) -> None:
        """One process a rank; its output goes to a file."""
        paths = [p for p in sys.path if p]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        for rank in range(1, len(self._world.devices)):
            with (self._folder / f"{rank}.log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", command],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment,
                    start_new_session=True,  # Ctrl-C in a terminal is rank 0's to judge
                )  # fmt: skip
            self._processes[rank] = process
            head = {"world": asdict(self._world), "rank": rank, "folder": str(self._folder)}
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps({**head, "task": task}) + "\n")
                process.stdin.flush()
            except BrokenPipeError:
                self.check(LAST_WORDS_S)

    def await_all(self) -> None:
        """Until every rank is ready to meet."""
        end = time.monotonic() + START_S
        while any(not (self._folder / f"{rank}.ready").exists() for rank in self._processes):
            self.check()
            if time.monotonic() > end:
                raise RankLost(
                    f"the other ranks of a training were not there after {START_S:.0f} s"
                )
            time.sleep(0.02)

    def check(self, wait_s: float = 0.0) -> None:
        """Raise RankFailed or RankLost where a rank has ended badly, or does so within `wait_s`."""
        end = time.monotonic() + wait_s
        while True:
            ended = [rank for rank, process in self._processes.items() if process.poll()]
            if ended:
                raise self._why(min(ended, key=self._fell_silent))
            if time.monotonic() >= end:
                return
            time.sleep(0.05)

    def end(self) -> None:
        """No process is left: those that are done are awaited, others killed."""
        for process in self._processes.values():
            try:
                process.wait(LAST_WORDS_S if self.finishing else 0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()

    def abort_when_one_dies(self) -> None:
        """NCCL waits for a dead rank, in a kernel; gloo's connections break by themselves."""

        def watch() -> None:
            while not self.finishing:
                if any(p.poll() for p in self._processes.values()):
                    _leave(abort=True)
                    return
                time.sleep(0.5)

        if "nccl" in self._world.backend:
            threading.Thread(target=watch, daemon=True).start()

    def _fell_silent(self, rank: int) -> float:
        """When: the first did so by itself, others because of it. Who left no note was killed: first."""
        note = self._folder / f"{rank}.json"
        return note.stat().st_mtime if note.is_file() else 0.0

    def _why(self, rank: int) -> Exception:
        process = self._processes[rank]
        name = f"rank {rank} of {len(self._world.devices)}"
        note = self._folder / f"{rank}.json"
        if note.is_file():
            said = json.loads(note.read_text())
            return RankFailed(said["status"], f"{name}: {said['reason']}")
        code = process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        lines = (self._folder / f"{rank}.log").read_text(errors="replace").strip().splitlines()
        last = f"; its last line: {lines[-1][:300]}" if lines else ""
        return RankLost(
            f"{name} (pid {process.pid}) of a training on several devices {how}{last}. The machine may be "
            "out of memory; started again, the training goes on from its checkpoint."
        )


# --- the others -------------------------------------------------------------------------------


def following(
    run: Callable[[Ranks, Mapping[str, Any]], None], reason: Callable[[Exception], tuple[str, str]]
) -> None:
    """The life of a rank beside 0: read the task, meet, `run`, end. Never returns.

    `reason` makes (status, text) of an exception: rank 0 ends its training by them.
    """
    given = json.loads(sys.stdin.readline())
    folder, rank = Path(given["folder"]), given["rank"]
    _end_with_the_leader(folder)
    world = World(devices=tuple(given["world"]["devices"]), backend=given["world"]["backend"])
    try:
        (folder / f"{rank}.ready").touch()
        with _met(world, folder, rank):
            run(Ranks(world, rank), given["task"])
    except Exception as error:
        if _leader_is_gone():  # then that is the reason, and nobody reads another
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)
        status, text = reason(error)
        whole = folder / f"{rank}.tmp"
        whole.write_text(json.dumps({"status": status, "reason": text}))
        whole.rename(folder / f"{rank}.json")
        os._exit(1)  # nothing waits for ranks that no longer answer
    os._exit(0)


def _leader_is_gone() -> bool:
    """Whether standard input has ended, or does so at once: a dying process closes its connections one by
    one."""
    pipe = select.poll()
    pipe.register(0, select.POLLHUP)
    return bool(pipe.poll(200))


def _end_with_the_leader(folder: Path) -> None:
    """Rank 0 holds the other end of standard input; where that is closed, it is gone, even by kill -9."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _met(world: World, folder: Path, rank: int, others: Others | None = None) -> Iterator[None]:
    """Within, the ranks can talk; nobody else can listen."""
    device = torch.device(world.devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    names = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), _loopback())
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        dist.init_process_group(
            world.backend,
            store=dist.FileStore(str(folder / "meeting"), len(world.devices)),
            rank=rank,
            world_size=len(world.devices),
            timeout=timedelta(seconds=PATIENCE_S),
        )
        if others is not None:
            others.abort_when_one_dies()
        yield
    except BaseException:
        if others is not None:
            others.end()  # first: leaving may wait for them
            _leave(abort="nccl" in world.backend)
        raise
    finally:
        _leave()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _leave(*, abort: bool = False) -> None:
    """Talk no more; `abort` what is under way."""
    if dist.is_initialized():
        (dist.distributed_c10d._abort_process_group if abort else dist.destroy_process_group)()


def _loopback() -> str:
    """The name of the interface that only this machine sees."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), "lo")
