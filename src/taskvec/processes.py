"""Workers in processes on this machine, each a new Python that talks with its driver.

Messages are pickled here: connections would do it in the way of torch, which hands tensors over in shared
memory.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, Pipe, wait
from threading import Lock, Thread, get_ident
from typing import Any, NoReturn

from taskvec.errors import TaskvecError

AGAIN = 3
"""How often work is done again whose worker ended."""

Ask = Callable[[Any], Any]
"""Says something to the driver, and returns its answer."""

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from taskvec.processes import main; main(sys.argv[2], *map(int, sys.argv[3:]))"
)
"""A new Python, and no fork: that of a process with threads may hang. Nothing of the user's is imported, so
that a script needs no ``if __name__ == "__main__"``."""

_PATIENCE = 5.0
"""Seconds that an end may take."""


@dataclass(frozen=True)
class Note:
    """Something for the log."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True)
class Gone:
    """A worker is no more; why, as the end of a sentence: ``was ended by SIGKILL``."""

    why: str


class Process:
    """A worker in a process of its own. It ends when its driver does, however that ends.

    Args:
        serve: ``module:function`` of this package that is given the setup, and how to ask the driver.
    """

    def __init__(self, number: int, serve: str, setup: object) -> None:
        self.name = f"worker {number}"
        self.connection, theirs = Pipe()
        life, self._life = os.pipe()
        self._left = False
        handles = (theirs.fileno(), life)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), serve, *map(str, handles)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # results of the driver go to standard output
                pass_fds=handles,
                start_new_session=True,  # Ctrl-C is for the driver
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )
        finally:
            theirs.close()
            os.close(life)
        self.answer(setup)

    def answer(self, value: object) -> None:
        """Answer what it said last; nothing happens where it is gone."""
        with suppress(OSError):
            self.connection.send_bytes(pickle.dumps(value))

    def listen(self) -> Any:
        """What it says, or how it ended (``Gone``)."""
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return Gone(self._end())

    def leave(self) -> None:
        """Have it end what it started, and then itself; ``close`` waits for that."""
        if not self._left:
            self._left = True
            os.close(self._life)

    def close(self) -> None:
        """End it now, whatever it is at."""
        if self._left:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(2 * _PATIENCE)
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self.leave()

    def _end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.poll()
        if code is None:
            return "closed its connection"
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def heard(processes: Sequence[Process]) -> Iterator[tuple[Process, Any]]:
    """What some workers say, or that they are gone, once at least one of them says something or is gone."""
    by_connection = {process.connection: process for process in processes}
    for connection in wait(list(by_connection)):
        process = by_connection[connection]  # type: ignore[index]
        yield process, process.listen()


def main(serve: str, handle: int, life: int) -> NoReturn:
    """What a worker's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for inherited in (handle, life):
        os.set_inheritable(inherited, False)
    Thread(target=_end_with, args=(life,), daemon=True).start()
    connection, lock = Connection(handle), Lock()

    def ask(message: object) -> Any:
        with lock:
            connection.send_bytes(pickle.dumps(message))
            return pickle.loads(connection.recv_bytes())

    try:
        setup = pickle.loads(connection.recv_bytes())
        module, _, function = serve.partition(":")
        getattr(import_module(module), function)(setup, ask)
    except (EOFError, ConnectionError):  # the driver is gone
        pass
    sys.stderr.flush()
    os._exit(0)


_last_acts: list[Callable[[], object]] = []


@contextmanager
def ending_too(act: Callable[[], object]) -> Iterator[None]:
    """Something that a worker does before it ends because its driver is gone, or has no more use for it."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def _end_with(life: int) -> None:
    """End this process when the other end is closed: its driver is gone, whatever is at work here."""
    os.read(life, 1)
    for act in list(_last_acts):
        with suppress(Exception):
            act()
    os._exit(1)


class _Noting(logging.Handler):
    """What the library notes in this thread is for the driver's log."""

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask, self._thread = ask, get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the driver."""
        if record.thread == self._thread:  # a driver in the same process has a log of its own
            self._ask(Note(record.name, record.levelno, record.getMessage()))


@contextmanager
def noting(ask: Ask) -> Iterator[None]:
    """Tell the driver what the library notes."""
    logger, handler = logging.getLogger("taskvec"), _Noting(ask)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def portable(error: Exception) -> Exception:
    """The same error in a form that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        kind = TaskvecError if isinstance(error, TaskvecError) else RuntimeError
        return kind(f"{type(error).__name__}: {error}")
    return error
