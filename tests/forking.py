"""Runs commands in processes forked from one that has imported all they need, and gets them into trouble.

A request is a line of JSON on standard input, a ``Request``; the answer is a line of JSON, an ``Ended``.
``Forks`` is the side that asks.
"""

import ctypes
import errno
import faulthandler
import gc
import importlib
import json
import multiprocessing
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}

Trouble = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """A command, where it is to be run, and what is to happen to it.

    Attributes:
        log: what it prints goes here, what it says on standard error to the same with ``.err`` added.
        send: a signal sent ``after`` seconds, 0 for none.
        seconds: after these it is killed, with all processes of its own: of the processor while it works, so
            that other work on the machine does not matter, and of the clock when it waits for something.
        learn: import from now on, ahead of every fork, what this command imported.
    """

    arguments: list[str]
    log: str
    place: str
    trouble: dict[str, Any]
    send: int = 0
    after: float = 0.0
    seconds: float = 600.0
    learn: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or a signal as a negative one."""

    code: int
    seconds: float
    processor: float
    late: bool


class Forks:
    """Commands in processes of their own, which start in no time."""

    def __init__(self, folder: Path, learned: Path | None = None, **environment: str) -> None:
        self._log = folder / "log"
        self._server = subprocess.Popen(
            [sys.executable, __file__, *([learned] if learned else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
        )
        self.ended = Ended(0, 0.0, 0.0, False)

    def __call__(
        self,
        arguments: Sequence[str],
        trouble: Trouble | None = None,
        send: int = 0,
        after: float = 0,
        *,
        place: Path | None = None,
        seconds: float = 600,
        learn: bool = False,
    ) -> int:
        """The exit code of a command that gets into trouble, or is sent a signal seconds after its start."""
        request = Request(
            list(arguments),
            str(self._log),
            str(place or Path.cwd()),
            dict(trouble or {}),
            send,
            after,
            seconds,
            learn,
        )
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(asdict(request)) + "\n")
        self._server.stdin.flush()
        self.ended = Ended(**json.loads(self._server.stdout.readline()))
        return self.ended.code

    @property
    def learned(self) -> Path:
        """A file with the modules that have been imported, for another server that is to begin with them."""
        return Path(f"{self._log}.modules")

    @property
    def out(self) -> str:
        """What the last command printed."""
        return self._log.read_text(errors="backslashreplace")

    @property
    def errors(self) -> str:
        """What the last command said on standard error."""
        return Path(f"{self._log}.err").read_text(errors="backslashreplace")

    @property
    def said(self) -> str:
        """Both."""
        return self.out + self.errors

    def close(self) -> None:
        self._server.communicate()


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
            # A disk takes what fits, and fails the next time.
            count = write(handle, data[: left.value], place)
            left.value -= count
        return count

    os.pwrite = written  # type: ignore[assignment]


def claim_room(size: int) -> None:
    """Say that so much is free, whatever is: somebody else may fill the disk a moment later."""
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(size, 0, size)


def limit_files(size: int) -> None:
    """No file may be longer: the kernel itself refuses, whoever writes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_handles(count: int) -> None:
    """No more files may be open at a time."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def limit_memory(extra: int) -> None:
    """No more memory of its own than the process starts with and so much: the kernel refuses the rest."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    bound = int(found[1]) * 1024 + extra
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))


def share_out(processes: int) -> None:
    """Share even a small edit out to processes."""
    import torch

    import taskvec.cli._editing

    taskvec.cli._editing._SHARED = 0
    torch.set_num_threads(processes)


def close_handles(handles: Sequence[int]) -> None:
    """As a shell does with ``>&-``."""
    for handle in handles:
        os.close(handle)
        name = {0: "stdin", 1: "stdout", 2: "stderr"}[handle]
        setattr(sys, name, None)  # what Python makes of a stream that is closed when it starts


def break_pipe(handle: int) -> None:
    """Nobody reads what goes into this stream."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, handle)


def environment(values: Mapping[str, str | None]) -> None:
    """Set variables, or take them away."""
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def hide_shared_memory(_: object) -> None:
    """A machine without /dev/shm. Only root can have its own view of the file system."""
    system = ctypes.CDLL(None, use_errno=True)
    new_view, private = 0x00020000, 0x00044000
    if (
        system.unshare(new_view)
        or system.mount(b"none", b"/", None, private, None)
        or system.umount2(b"/dev/shm", 2)
    ):
        raise OSError(ctypes.get_errno(), "no view of the file system of its own")
    Path("/dev/shm").chmod(0o555)


def keep_no_code(_: object) -> None:
    """No folder where numba could keep machine code."""
    import numba

    numba.config.CACHE_DIR = "/proc/nowhere"  # type: ignore[attr-defined]


def only_ascii(_: object) -> None:
    """Streams that take no other letters."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="ascii")  # type: ignore[union-attr]


def one_processor(_: object) -> None:
    """The process may use one only."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def say_where(seconds: float) -> None:
    """Print where it is, if it still is somewhere after so many seconds."""
    faulthandler.dump_traceback_later(seconds, file=2)


def threads(count: int) -> None:
    """So many for torch."""
    import torch

    torch.set_num_threads(count)


def umask(mask: int) -> None:
    """What new files may not be."""
    os.umask(mask)


TROUBLE: dict[str, Callable[[Any], None]] = {
    function.__name__: function
    for function in (
        die_before_change,
        fill_after,
        claim_room,
        limit_files,
        limit_handles,
        limit_memory,
        share_out,
        close_handles,
        break_pipe,
        environment,
        hide_shared_memory,
        keep_no_code,
        one_processor,
        only_ascii,
        say_where,
        threads,
        umask,
    )
}


def obey(request: Request) -> int:
    """The exit code of one command."""
    from taskvec.cli import main

    os.setpgid(0, 0)
    os.chdir(request.place)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for handle, path in ((1, request.log), (2, request.log + ".err")):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    code: int | str | None
    try:
        for name, value in request.trouble.items():
            TROUBLE[name](value)
        main(request.arguments)
    except SystemExit as done:
        code = done.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    if request.learn:
        Path(request.log + ".modules").write_text("\n".join(sys.modules))
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


def working(process: int, seconds: float) -> bool:
    """Whether it has used the processor for less than ``seconds``, and goes on doing so."""
    before = spent(process)
    time.sleep(0.5)
    return before < spent(process) < seconds


def spent(process: int) -> float:
    """Seconds of the processor, in all threads."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(request: Request) -> Ended:
    """Fork, disturb, and wait."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 98
        try:
            code = obey(request)
        finally:
            os._exit(code)
    end = os.pidfd_open(child)
    done = select.poll()
    done.register(end, select.POLLIN)
    if request.send and not done.poll(1000 * request.after):
        os.kill(child, request.send)
    late = not done.poll(max(0, 1000 * (begun + request.seconds - time.monotonic())))
    while late and working(child, request.seconds):
        late = not done.poll(100)
    if late:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    os.close(end)
    _, status, used = os.wait4(child, 0)
    if request.learn:
        import_all(Path(request.log + ".modules"))
    return Ended(
        os.waitstatus_to_exitcode(status), time.monotonic() - begun, used.ru_utime + used.ru_stime, late
    )


def import_all(modules: Path) -> None:
    """Import what is listed in a file, ahead of all forks."""
    for name in modules.read_text().split():
        with suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


def main_loop() -> None:
    """Fork for every request, until there are no more."""
    import torch

    # Imported once, for all forks.
    import taskvec.cli.merge
    import taskvec.edits.card
    import taskvec.edits.recipe
    import taskvec.weights  # noqa: F401

    torch.set_num_threads(1)
    for modules in sys.argv[1:]:
        import_all(Path(modules))
    os.fsync = lambda fd: None  # whoever is killed here, the system lives on
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asdict(served(Request(**json.loads(line))))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main_loop()
