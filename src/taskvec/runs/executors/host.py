"""What runs on the nodes of a cluster: workers in actors, and the checks before they begin."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.runs.executors.messages import Message, Setup
    from taskvec.studies.trial import Plan

BLIND = "blind"
"""What a machine says that does not see what another one wrote."""


class Host:
    """A worker in a thread, with which its driver talks turn by turn.

    Args:
        home: the folder where the driver works.
        variables: of its environment, of which results depend; they are set before torch is imported.
    """

    def __init__(self, home: str, variables: Mapping[str, str]) -> None:
        settle(home, variables)
        self._said: SimpleQueue[Message | None] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._begun = False

    def turn(self, answer: Any) -> "Message | None":
        """Hear the answer to what the worker said last, at first its setup; return what it says next.

        A worker that is told that no job is left clears up and says nothing.
        """
        if self._begun:
            self._answers.put(answer)
        else:
            self._begun = True
            Thread(target=self._work, args=(answer,), daemon=True).start()
        return self._said.get()

    def _work(self, setup: "Setup") -> None:
        from taskvec.runs.executors.worker import serve

        serve(setup, self._ask)
        self._said.put(None)

    def _ask(self, message: "Message") -> Any:
        self._said.put(message)
        return self._answers.get()


def settle(home: str, variables: Mapping[str, str]) -> None:
    """Work where the driver does, as far as this machine has that folder."""
    os.environ.update(variables)
    with suppress(OSError):
        os.chdir(home)


def run_command(command: list[str], home: str, variables: Mapping[str, str]) -> tuple[str, int, str, str]:
    """Run a command of taskvec: the machine, the exit code (below 0 if it was killed), what it said, and what
    it complained of at last."""
    done = subprocess.run(
        [sys.executable, "-m", "taskvec", *command],
        cwd=home if Path(home).is_dir() else None,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    complaint = done.stderr.strip().rpartition("\n")[2].removeprefix("taskvec: ")
    return socket.gethostname(), done.returncode, done.stdout, complaint


def leave_mark(folder: Path, storage: str | None, first: str, own: str) -> str:
    """See the mark of another machine where files are to lie, and leave one; what is wrong, if anything."""
    from taskvec.errors import TaskvecError
    from taskvec.studies.files import LATE
    from taskvec.studies.storage import open_files

    with tempfile.TemporaryDirectory() as scratch:
        try:
            files = open_files(folder if storage is None else Path(scratch), storage)
            if not files.waits_for(first, LATE):
                return BLIND
            files.probe(own)
        except TaskvecError as error:
            return str(error)
    return ""


def lack(plan: "Plan", digests: Mapping[str, str], home: str, variables: Mapping[str, str]) -> str:
    """What of a plan this machine has not, or has otherwise than the driver; nothing if all is the same."""
    from taskvec.errors import TaskvecError

    settle(home, variables)
    try:
        return _lack(plan, digests)
    except TaskvecError as error:
        return str(error)


def _lack(plan: "Plan", digests: Mapping[str, str]) -> str:
    from taskvec.runs.runner import fingerprint_of
    from taskvec.studies.given import digest_of, load_given

    checkpoint = plan.experiment.checkpoint
    if fingerprint_of(checkpoint) != plan.model:
        return f"{checkpoint}: holds other weights there, expected those of this machine"
    for task, digest in plan.digests.items():
        if plan.suite.task(task).fingerprint != digest:
            return f"task {task}: has other data there, expected those of this machine"
    for task, vector in load_given(plan.experiment.vectors).items():
        if digest_of(vector) != digests[task]:
            return f"vectors.{task}: {plan.experiment.vectors[task]}: another vector there"
    return ""
