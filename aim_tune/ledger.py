"""What happened: an append-only JSONL file, one record per event, fsynced. The single source of truth.

Everything else (MLflow, report, Optuna studies, progress) is rebuilt from it. Only the driver writes.

    event              fields besides `event` and `time` (seconds since 1970)
    declared           study (dict), study_hash, code_hash, code (file -> hash), data_digest, versions, node
    resumed            node, pid            (the same command again)
    extended           blocks               (protocol.blocks grew)
    asked              position, request (dict), content_hash, reused_from (position or null)
    training_started   position, arm, attempt, node, device, pid
    epoch              position, arm, attempt, step, epoch, train_loss, val_loss, val_accuracy, lr, seconds
    training_done      position, arm, attempt, result (TrainingResult as dict)
    job_lost           position, arms, reason            (worker killed, node gone...)
    test_look          position, arms, examples          (written BEFORE the labels are used)
    request_done       position, test: {arm: {accuracy, correct}}    (test is {} except in confirm pairs)
    interrupted        reason
    verdict            verdict (dict, see stats.verdict)

Accuracies are fractions in [0, 1]; seconds are wall-clock; losses are means per example, in nats.
NaN and inf are written as null (JSON has neither). Each line ends with a CRC-32 of itself, so that a
changed digit is noticed; lines without one are accepted.
"""

from __future__ import annotations

import base64
import bisect
import fcntl
import json
import math
import os
import shutil
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from aim_tune.errors import LedgerError, LockedError, ResourceError
from aim_tune.spec.request import Point, Request

EVENTS = (
    "declared", "resumed", "extended", "asked", "training_started", "epoch", "training_done",
    "job_lost", "test_look", "request_done", "interrupted", "verdict",
)  # fmt: skip
"""Every event there is; see the table above."""

STATUSES = ("ok", "pruned", "diverged", "oom", "timeout", "failed")
"""How a training ended. diverged: the loss became NaN or inf, the score reached is kept. pruned: stopped
early in explore, below its arm's ladder; the score reached is kept. oom: out of memory. timeout: time
limit. failed: an exception, or three lost attempts."""

FAILED = ("failed", "oom")
"""Statuses without a usable score."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One validation pass in a training."""

    step: int
    epoch: float
    train_loss: float
    """Mean over the steps since the pass before."""
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    """Training time so far, validation not counted."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Measure:
        """From an `epoch` record; null stands for a number that was NaN or inf."""
        known = {f.name: value[f.name] for f in fields(cls)}
        finite: dict[str, Any] = {k: math.nan if v is None else v for k, v in known.items()}
        return cls(**finite)


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How one training of one arm ended, as the worker reports it. No test score: workers have none."""

    arm: str
    status: str
    """See STATUSES."""
    detail: str = ""
    """Reason of anything but ok, for people."""
    steps: int = 0
    """Optimizer steps done."""
    allotted_steps: int = 0
    """Optimizer steps granted: what budgets are compared by."""
    val_accuracy: float | None = None
    """At the last validation pass: the score arms are compared by."""
    val_best: float | None = None
    seconds: float = 0.0
    """Wall-clock time in training steps; validation and start-up not counted."""
    step_ms: float | None = None
    """Median wall-clock time of a training step after warm-up, milliseconds."""
    peak_mib: float | None = None
    """Peak memory: of the GPU for this training, or None on a CPU."""
    parameters: int = 0
    trainable: int = 0
    flops: int | None = None
    """Forward FLOPs per image (two per multiply-add)."""
    device: str = ""
    """Such as "cpu: AMD EPYC" or "cuda: NVIDIA H200"."""
    node: str = ""
    weights_sha256: str | None = None
    """Digest of the final state_dict."""
    predictions: str | None = None
    """Confirm pairs: class per sealed test example, see `pack_ints`."""
    memory: dict[str, Any] | None = None
    """First confirm run of the add-on: pictures of what it learned, see addons/pictures.py."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TrainingResult:
        """Inverse of `to_dict`; fields that a later version added are left out."""
        return cls(**{f.name: value[f.name] for f in fields(cls) if f.name in value})


@dataclass(kw_only=True)
class Training:
    """One row of the tidy table: a training with all that is known of it so far."""

    position: str
    stage: str
    """explore, twin or confirm."""
    block: int | None
    index: int
    """Number within its stage (and block)."""
    arm: str
    point: Point
    streams: Mapping[str, int]
    status: str = "asked"
    """asked, running, or one of STATUSES."""
    attempts: int = 0
    """Number of the latest attempt."""
    spared: int = 0
    """Attempts ended by an interrupt (Ctrl-C): they do not count against the limit of attempts."""
    curve: list[Measure] = field(default_factory=list)
    """By step; a resumed training's passes are merged."""
    result: TrainingResult | None = None
    reused_from: str | None = None
    """Position whose result this one repeats (explore duplicates; not a training of its own)."""
    test_accuracy: float | None = None
    correct: str | None = None
    """Confirm pairs: one bit per sealed test example, see `unpack_bits`."""
    started: float | None = None
    finished: float | None = None

    @property
    def done(self) -> bool:
        """Whether the training has ended, well or not."""
        return self.result is not None

    @property
    def failed(self) -> bool:
        """Whether it ended without a usable result: an exception, lost attempts, out of memory."""
        return self.status in FAILED

    @property
    def score(self) -> float | None:
        """Validation accuracy at the read point; None before the end and for a failed run. A diverged
        or timed-out run keeps what it reached."""
        return self.result.val_accuracy if self.result and not self.failed else None


@dataclass(kw_only=True)
class History:
    """A replayed ledger."""

    declared: dict[str, Any] | None = None
    requests: dict[str, Request] = field(default_factory=dict)
    """Position -> request, in the order asked."""
    trainings: dict[tuple[str, str], Training] = field(default_factory=dict)
    """(position, arm) -> training."""
    done: set[str] = field(default_factory=set)
    """Positions of finished requests."""
    looks: list[dict[str, Any]] = field(default_factory=list)
    """All test_look records."""
    blocks: int | None = None
    """Number of blocks after the last `extended` record; None: as declared."""
    interrupted: bool = False
    """Whether the last run was stopped by the user and has not been resumed."""
    verdict: dict[str, Any] | None = None
    events: int = 0
    dropped_bytes: int = 0
    """Length of an incomplete last line that was left out when reading."""
    _repeats: dict[str, list[str]] = field(default_factory=dict, repr=False)
    """Position -> positions that reuse its results."""

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take one more record into account. Unknown events (of a later version) are only counted."""
        self.events += 1
        handler: Callable[[Mapping[str, Any]], None] | None
        handler = getattr(self, f"_on_{record['event']}", None)
        if handler is not None:
            handler(record)

    def rows(self, stage: str | None = None, arm: str | None = None) -> list[Training]:
        """The tidy table, optionally of one stage or arm, in the order asked."""
        return [
            t for t in self.trainings.values() if stage in (None, t.stage) and arm in (None, t.arm)
        ]

    def of(self, position: str) -> list[Training]:
        """The trainings of one request, in the order of its arms."""
        return [self.trainings[position, arm] for arm in self.requests[position].arms]

    def _on_declared(self, record: Mapping[str, Any]) -> None:
        self.declared = dict(record)

    def _on_resumed(self, record: Mapping[str, Any]) -> None:
        self.interrupted = False
        for training in self._running():  # nobody trains them now
            training.status = "asked"

    def _on_interrupted(self, record: Mapping[str, Any]) -> None:
        self.interrupted = True
        for training in self._running():
            training.status = "asked"
            training.spared += 1

    def _on_extended(self, record: Mapping[str, Any]) -> None:
        self.blocks = record["blocks"]

    def _on_asked(self, record: Mapping[str, Any]) -> None:
        request = Request.from_dict(record["request"])
        if request.position in self.requests:
            return
        self.requests[request.position] = request
        source = record.get("reused_from")
        for arm, point in request.arms.items():
            self.trainings[request.position, arm] = Training(
                position=request.position,
                stage=request.stage,
                block=request.block,
                index=int(request.position.rpartition("/")[2]),
                arm=arm,
                point=point,
                streams=request.streams,
                reused_from=source,
            )
        if source is not None:
            self._repeats.setdefault(source, []).append(request.position)
            self._share(source, request.position)

    def _on_training_started(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if training.done or record["attempt"] < training.attempts:
            return
        training.status = "running"
        training.attempts = record["attempt"]
        if training.started is None:
            training.started = record.get("time")

    def _on_epoch(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if record["attempt"] < training.attempts:  # an orphan of an earlier attempt
            return
        measure, curve = Measure.from_dict(record), training.curve
        place = bisect.bisect_left(curve, measure.step, key=lambda m: m.step)
        same = place < len(curve) and curve[place].step == measure.step
        curve[place : place + same] = [measure]

    def _on_training_done(self, record: Mapping[str, Any]) -> None:
        training = self._training(record)
        if training.done:  # an orphan of an earlier attempt
            return
        training.attempts = max(training.attempts, record["attempt"])
        training.result = TrainingResult.from_dict(record["result"])
        training.status = training.result.status
        training.finished = record.get("time")
        for repeat in self._repeats.get(training.position, ()):
            self._share(training.position, repeat)

    def _on_job_lost(self, record: Mapping[str, Any]) -> None:
        for arm in record["arms"]:
            training = self._training({**record, "arm": arm})
            if not training.done:
                training.status = "asked"

    def _on_test_look(self, record: Mapping[str, Any]) -> None:
        self.looks.append(dict(record))

    def _on_request_done(self, record: Mapping[str, Any]) -> None:
        self.done.add(record["position"])
        for arm, test in record.get("test", {}).items():
            training = self._training({**record, "arm": arm})
            training.test_accuracy = test["accuracy"]
            training.correct = test["correct"]

    def _on_verdict(self, record: Mapping[str, Any]) -> None:
        self.verdict = dict(record["verdict"])

    def _training(self, record: Mapping[str, Any]) -> Training:
        key = (record["position"], record["arm"])
        if key not in self.trainings:
            raise LedgerError(
                f"event {record['event']!r} speaks of {key[0]}, arm {key[1]}, which was never asked"
            )
        return self.trainings[key]

    def _running(self) -> Iterator[Training]:
        return (t for t in self.trainings.values() if t.status == "running")

    def _share(self, source: str, repeat: str) -> None:
        """Give a repeated request what is known of its source by now."""
        for arm in self.requests[repeat].arms:
            known = self.trainings.get((source, arm))
            if known is not None and known.done:
                mine = self.trainings[repeat, arm]
                mine.result, mine.status, mine.curve = known.result, known.status, known.curve


class Ledger:
    """The ledger of a results folder, open for appending by this process alone.

    Opening replays the file into `history`; where there is none, a new one is begun. An incomplete
    last line is cut off: `append` had not returned, so nothing was built on it;
    `history.dropped_bytes` says how much went. Raises LockedError, with pid and host, while another
    process holds the folder; LedgerError where a line in the middle is damaged (the file then stays
    as it is, a copy is put beside it); ResourceError where the folder cannot be written or locked.

        with Ledger(Path("results/quickstart/ledger.jsonl")) as ledger:
            ledger.append({"event": "resumed", "node": "laptop", "pid": 4711})
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._mutex = threading.Lock()
        self._lock_file = _lock(self.path.with_suffix(".lock"))
        try:
            self.history, self._end = self._replay()
            # Unbuffered: a line is in the file, or append has raised
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(self._end)
            _sync_folder(self.path.parent)
        except BaseException:
            self._lock_file.close()
            raise

    def append(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """The record as a replay would give it: stamped with `time`, on disk, applied to `history`.

        Raises ResourceError when it cannot be written (disk full); the file then still ends with
        the record before.
        """
        assert event["event"] in EVENTS, f"unknown event {event['event']!r}; known: {EVENTS}"
        stamped = {"event": event["event"], "time": round(time.time(), 3), **event}
        record, line = _encode(stamped)
        with self._mutex:
            self._write(line)
            self.history.apply(record)
        return record

    def close(self) -> None:
        """Give the folder free for another process."""
        self._file.close()
        self._lock_file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _replay(self) -> tuple[History, int]:
        if not self.path.exists():
            return History(), 0
        try:
            return _read(self.path)
        except LedgerError as error:
            aside = _copy_aside(self.path)
            raise LedgerError(f"{error} A copy was kept as {aside}.") from None

    def _write(self, line: bytes) -> None:
        try:
            written = self._file.write(line)
            if written != len(line):  # the disk took a part only
                raise OSError(f"{written} of {len(line)} bytes written")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._end)  # no half line under the next one
            raise ResourceError(
                f"cannot write to {self.path}: {error}. Nothing recorded so far is lost: make room "
                "and run the same command again."
            ) from error
        self._end += len(line)


def read_history(path: Path | str) -> History:
    """The replayed ledger, without a lock and without changing the file: fine while a search writes.

    Raises LedgerError when there is no ledger, or naming the first damaged line.
    """
    if not Path(path).is_file():
        raise LedgerError(f"no ledger at {path}; run `python -m aim_tune.search` first")
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[History, int]:
    """History, and where the last complete line ends."""
    history, end = History(), 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                history.dropped_bytes = len(line)
                break
            try:
                history.apply(_decode(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise LedgerError(
                    f"{path}, line {number} is damaged ({_reason(error)}). Put back a whole copy of "
                    f"this file, or keep the {number - 1} lines before it: what came later is then "
                    "run again."
                ) from None
            end += len(line)
    return history, end


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


_CRC = b',"crc":"%08x"}'
_CRC_LENGTH = len(_CRC % 0)


def _encode(record: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The record in plain JSON values, and its line."""
    text = json.dumps(_finite(record), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    body = text.encode()
    return json.loads(text), body[:-1] + _CRC % zlib.crc32(body) + b"\n"


def _decode(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError where it is not what was written."""
    body = line.rstrip(b"\r\n")
    mark = body[-_CRC_LENGTH:]
    if mark.startswith(_CRC[:8]):
        body = body[:-_CRC_LENGTH] + b"}"
        if mark != _CRC % zlib.crc32(body):
            raise ValueError("its checksum does not match")
    record = json.loads(body)
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        raise ValueError("not a record with an event")
    return record


def _finite(value: Any) -> Any:
    """`value` with NaN and inf as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


def _lock(path: Path) -> BinaryIO:
    """The lock file, held. The kernel lets go of it when the process dies, however it dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")  # noqa: SIM115
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with file:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "a process just starting"
        raise LockedError(
            f"{path.parent} is in use by {holder}. Wait for it, stop it, or choose another --out."
        ) from None
    except OSError as error:
        file.close()
        raise _unusable(path, error) from error
    file.truncate(0)
    file.write(f"pid {os.getpid()} on host {socket.gethostname()}".encode())
    file.flush()
    return file


def _unusable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"cannot write to and lock {path}: {error}. Choose a folder on a local disk with --out."
    )


def _copy_aside(path: Path) -> Path:
    """A copy of a damaged file; one that is already there with the same bytes is enough."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.damaged-{number}")
        if not aside.exists():
            shutil.copy2(path, aside)
            return aside
        if aside.read_bytes() == path.read_bytes():
            return aside
    return path


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_INT_TYPES = ("u1", "<i2", "<i4", "<i8")


def pack_ints(values: Sequence[int] | np.ndarray) -> str:
    """Short text for many small integers, in the smallest type that holds them; `unpack_ints` inverts it.

    >>> unpack_ints(pack_ints([3, 1, 999])).tolist()
    [3, 1, 999]
    """
    array = np.asarray(values, dtype=np.int64)
    kind = next(k for k in _INT_TYPES if np.array_equal(array.astype(k), array))
    return f"{kind}:{_squeeze(array.astype(kind).tobytes())}"


def unpack_ints(text: str) -> np.ndarray:
    """The integers (int64) of a text from `pack_ints`."""
    kind, _, body = text.partition(":")
    return np.frombuffer(_unsqueeze(body), dtype=kind).astype(np.int64)


def pack_bits(values: Sequence[bool] | np.ndarray) -> str:
    """Short text for many booleans; `unpack_bits` inverts it.

    >>> unpack_bits(pack_bits([True, False, True])).tolist()
    [True, False, True]
    """
    array = np.asarray(values, dtype=bool)
    return f"{array.size}:{_squeeze(np.packbits(array).tobytes())}"


def unpack_bits(text: str) -> np.ndarray:
    """The booleans of a text from `pack_bits`."""
    size, _, body = text.partition(":")
    bits = np.frombuffer(_unsqueeze(body), dtype=np.uint8)
    return np.unpackbits(bits, count=int(size)).astype(bool)


def _squeeze(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _unsqueeze(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
