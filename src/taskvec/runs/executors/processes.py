"""Workers in processes on this machine, each a new Python.

Messages are pickled here: connections would do it in the way of torch, which hands tensors over in shared
memory.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from threading import Lock, Thread
from typing import NoReturn

from taskvec.runs.executors.messages import Gone, Message, Setup
from taskvec.runs.executors.spread import Link, Spread

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from taskvec.runs.executors.processes import main; main(*map(int, sys.argv[2:]))"
)
"""A new Python, and no fork: that of a process with threads may hang. Nothing of the user's is imported, so
that a script needs no ``if __name__ == "__main__"``."""

_PATIENCE = 5.0
"""Seconds that an end may take."""


class Process:
    """A worker in a process of its own. It ends when its driver does, however that ends."""

    def __init__(self, number: int, setup: Setup) -> None:
        self.name = f"worker {number}"
        self.connection, theirs = Pipe()
        life, self._life = os.pipe()
        handles = (theirs.fileno(), life)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path), *map(str, handles)],
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

    def listen(self) -> Message | Gone:
        """What it says, or how it ended."""
        try:
            message: Message = pickle.loads(self.connection.recv_bytes())
            return message
        except (EOFError, OSError):
            return Gone(self._end())

    def close(self) -> None:
        """End it now, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        with suppress(OSError):
            os.close(self._life)

    def _end(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        code = self._process.poll()
        if code is None:
            return "closed its connection"
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


class Here:
    """The pool of such processes."""

    def start(self, number: int, setup: Setup) -> Process:
        """A new worker."""
        return Process(number, setup)

    def wait(self, links: Sequence[Link]) -> Iterable[tuple[Link, Message | Gone]]:
        """What some workers say, once at least one of them says something or is gone."""
        by_connection = {link.connection: link for link in links if isinstance(link, Process)}
        for connection in wait(list(by_connection)):
            link = by_connection[connection]  # type: ignore[index]
            yield link, link.listen()


def processes(count: int) -> Spread:
    """Workers in processes on this machine, as many as are said; each holds the model."""
    return Spread(Here(), count)


def main(handle: int, life: int) -> NoReturn:
    """What a worker's process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for inherited in (handle, life):
        os.set_inheritable(inherited, False)
    Thread(target=_end_with, args=(life,), daemon=True).start()
    connection, lock = Connection(handle), Lock()

    def ask(message: Message) -> object:
        with lock:
            connection.send_bytes(pickle.dumps(message))
            return pickle.loads(connection.recv_bytes())

    try:
        setup = pickle.loads(connection.recv_bytes())
        from taskvec.runs.executors.worker import serve

        serve(setup, ask)
    except (EOFError, ConnectionError):  # the driver is gone
        pass
    sys.stderr.flush()
    os._exit(0)


def _end_with(life: int) -> None:
    """End this process when the other end is closed: its driver is gone, whatever is at work here."""
    os.read(life, 1)
    os._exit(1)
