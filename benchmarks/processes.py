"""What a whole process costs: seconds, processor seconds, and the most memory of its own that it held."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from time import perf_counter, sleep

PAUSE = 0.02
"""Seconds between two looks whether a process has ended."""

LOOKS = 15
"""Looks between two measurements of its memory, which hold the process up: how short a peak can hide."""

_ANONYMOUS = re.compile(r"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True)
class Cost:
    """Of a process and those it starts, from start to exit, or of the median one of several.

    Attributes:
        seconds: of wall clock.
        cpu: seconds of processor, user and system, over all processes and threads.
        memory: the highest anonymous memory seen, in bytes. Mapped files do not count, and what forked
            processes share counts once.
        inner: seconds of the work itself, where the process prints them.
    """

    seconds: float
    cpu: float
    memory: int
    inner: float | None = None


def run(command: Sequence[str | Path]) -> tuple[Cost, str]:
    """Run a process to its end; what it cost, and what it wrote to standard output.

    Raises: SystemExit, with the end of what the process said, if it failed.
    """
    words = list(map(str, command))
    with TemporaryFile("w+") as output, TemporaryFile("w+") as errors:
        start = perf_counter()
        process = subprocess.Popen(words, stdout=output, stderr=errors)
        memory, ended, looks = 0, 0, 0
        while not ended:
            if looks % LOOKS == 0:
                memory = max(memory, _anonymous(process.pid))
            looks += 1
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            sleep(0 if ended else PAUSE)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(words)}: exit code {process.returncode}\n{errors.read()[-2000:]}")
        return Cost(seconds, used.ru_utime + used.ru_stime, memory), output.read()


def middle(costs: Iterable[Cost]) -> Cost:
    """The median of every figure by itself; of memory the largest."""
    runs = list(costs)
    inner = [cost.inner for cost in runs if cost.inner is not None]
    return Cost(
        median(cost.seconds for cost in runs),
        median(cost.cpu for cost in runs),
        max(cost.memory for cost in runs),
        median(inner) if inner else None,
    )


def _anonymous(process: int) -> int:
    """Bytes of anonymous memory of a process and of all below it; nothing of those that have just ended."""
    here = Path(f"/proc/{process}")
    try:
        found = _ANONYMOUS.search((here / "smaps_rollup").read_text())
        below = (here / "task" / str(process) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (1024 * int(found[1]) if found else 0) + sum(_anonymous(int(child)) for child in below)
