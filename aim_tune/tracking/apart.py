"""The store in a process of its own, at the lowest priority: trainings never wait for MLflow.

A run costs MLflow about 45 ms of processor time, and Python's lock for as long. Here both are spent in
another process, which lives on what the trainings leave over; and a search starts without importing
MLflow. Calls go through a pipe, one at a time. The process ends with its pipe, so it outlives nobody; one
that died is replaced at the next call.

python -m aim_tune.tracking.apart        the other end: reads calls of `store.Store`, writes answers
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from aim_tune.errors import ResourceError
from aim_tune.tracking.place import probe

NICE = 19
"""Priority of the process: about 1.5 % of a core that trainings use, all of one that they do not."""
END_S = 5.0
"""How long `close` waits for the process, seconds."""


class Apart:
    """A `store.Store` in another process: the same calls, for one thread at a time.

    ResourceError arrives as itself, whatever else MLflow raises as RuntimeError with its text.
    """

    def __init__(self, uri: str, *, artifacts: Path | None = None) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._child: subprocess.Popen[bytes] | None = None
        self._opened: tuple[Any, ...] = ()
        """What `open` was called with, once it has succeeded."""
        self._over = False

    def prepare(self) -> None:
        """Let the process start and import MLflow, which takes seconds, and come back at once."""
        assert self._child is None, "it runs already"
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            start_new_session=True,  # Ctrl-C and a closed terminal are the search's business
        )
        _put(self._child.stdin, (self.uri, self._artifacts))

    def open(
        self, experiment: str, note: str, on_answer: Callable[[], None] = lambda: None
    ) -> None:
        """See `Store.open`."""
        probe(self.uri)
        on_answer()
        self._call("open", experiment, note)
        self._opened = (experiment, note)

    @property
    def experiment_id(self) -> str:
        """See `Store.experiment_id`."""
        return str(self._call("experiment_id"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Every other call of `Store`, see there."""
        if name.startswith("_"):
            raise AttributeError(name)
        return partial(self._call, name)

    def close(self) -> None:
        """End the process, also while another thread waits for its answer. No call follows."""
        self._over = True
        self._end()

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        with suppress(OSError):
            _pipe(child.stdin).close()
        try:
            child.wait(END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _pipe(child.stdout).close()  # last: a thread that reads it has come back by now

    def _call(self, name: str, *args: Any) -> Any:
        if self._over:
            raise RuntimeError("the store is closed")
        if self._child is None:
            self.prepare()
            if self._opened and name != "open":
                self._ask("open", *self._opened)
        return self._ask(name, *args)

    def _ask(self, *message: Any) -> Any:
        """Send a message and wait for the answer. RuntimeError where the process has died."""
        assert self._child is not None
        try:
            _put(self._child.stdin, message)
            kind, answer = pickle.load(_pipe(self._child.stdout))
        except (OSError, EOFError, pickle.UnpicklingError):
            self._end()
            text = "the process that writes to MLflow has died; the next try starts another"
            raise RuntimeError(text) from None
        if kind is not None:
            raise kind(answer)
        return answer


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _put(pipe: IO[bytes] | None, message: object) -> None:
    pickle.dump(message, _pipe(pipe))
    _pipe(pipe).flush()


def main() -> None:
    """Answer calls until the pipe ends."""
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what MLflow prints is no answer
    uri, artifacts = pickle.load(calls)
    store = import_module("aim_tune.tracking.store").Store(uri, artifacts=artifacts)
    while True:
        try:
            name, *args = pickle.load(calls)
        except EOFError:
            return
        answer = _answer(store, name, args)
        if name == "open":  # until here a search has waited for it
            step_back()
        try:
            _put(answers, answer)
        except BrokenPipeError:  # the search was killed while MLflow worked
            os._exit(0)


def step_back() -> None:
    """Lower this process to NICE, and its session: Linux first weighs sessions against each other, so
    that in one of its own it would get a whole core in spite of its own priority."""
    os.nice(NICE - os.nice(0))
    with suppress(OSError):  # not Linux, or sessions are not weighed
        Path("/proc/self/autogroup").write_text(str(NICE))


def _answer(store: Any, name: str, args: list[Any]) -> tuple[type[Exception] | None, Any]:
    """(None, what a call gives), or the kind and the text of its error."""
    try:
        found = getattr(store, name)
        return None, found(*args) if callable(found) else found
    except ResourceError as error:
        return ResourceError, str(error)
    except Exception as error:
        return RuntimeError, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
