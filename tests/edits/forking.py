"""Runs commands in processes forked from one that has imported all they need, and gets them into trouble.

A request is a line of JSON on standard input: ``arguments`` of the command, ``log`` for what it prints,
``trouble``, and a ``signal`` to be sent some seconds ``after`` the start. The answer is the exit code.
"""

import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import taskvec.cli._editing
import taskvec.cli.merge
import taskvec.edits.card
import taskvec.edits.recipe
import taskvec.weights  # imported once, for all forks
from taskvec.cli import main

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def die_before_change(number: int) -> None:
    """Die in front of the so many-th change to the file system, opening a file to write included."""
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGES:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def fill_after(room: int) -> None:
    """A disk with so many bytes free for tensors, of all processes together."""
    left, write = multiprocessing.get_context("fork").Value("q", room), os.pwrite

    def written(handle: int, data: memoryview, place: int) -> int:
        with left.get_lock():
            if left.value <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            count = write(
                handle, data[: left.value], place
            )  # a disk takes what fits, and fails the next time
            left.value -= count
        return count

    os.pwrite = written  # type: ignore[assignment]


def limit_files(size: int) -> None:
    """No file may be longer: the kernel itself refuses, whoever writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def share_out(processes: int) -> None:
    """Share even a small edit out to processes."""
    taskvec.cli._editing._SHARED = 0
    torch.set_num_threads(processes)


TROUBLE: dict[str, Callable[[int], None]] = {
    "die_before_change": die_before_change,
    "fill_after": fill_after,
    "limit_files": limit_files,
    "share_out": share_out,
}


def obey(request: dict[str, Any]) -> int:
    """The exit code of one command."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        for name, value in request["trouble"].items():
            TROUBLE[name](value)
        main(request["arguments"])
    except SystemExit as done:
        return int(done.code or 0)
    except KeyboardInterrupt:
        return 130


def main_loop() -> None:
    """Fork for every request, until there are no more."""
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # whoever is killed here, the system lives on
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(obey(request))
        if request["signal"]:
            time.sleep(request["after"])
            os.kill(child, request["signal"])
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main_loop()
