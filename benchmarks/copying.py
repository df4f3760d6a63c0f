"""The floor under any edit of files: read every input once, write one output; no arithmetic, one thread.

Run as ``python benchmarks/copying.py --outputs N OUT INPUT...``: the first N inputs are written again, below
OUT. Prints the seconds that it took, without those of starting.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

CHUNK = 1 << 19
"""Bytes moved at a time: stays in cache."""

FLUSHED = 1 << 26
"""Bytes after which what was written goes to the disk and out of memory, with ``--fsync``."""


def read(path: Path) -> None:
    """Read a file once."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass


def copy(path: Path, out: Path, *, flushed: bool) -> None:
    """Read a file once and write it again."""
    buffer = memoryview(bytearray(CHUNK))
    waiting = 0
    with path.open("rb", buffering=0) as source, out.open("wb", buffering=0) as target:
        while count := source.readinto(buffer):
            target.write(buffer[:count])
            waiting += count
            if flushed and waiting >= FLUSHED:
                flush(target.fileno())
                waiting = 0
        if flushed:
            flush(target.fileno())


def flush(handle: int) -> None:
    """Put a file on the disk and out of memory."""
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)


def copy_all(inputs: Sequence[Path], outputs: int, out: Path, *, flushed: bool = False) -> None:
    """Read all inputs; write the first ``outputs`` of them into a new folder."""
    out.mkdir()
    for path in inputs[:outputs]:
        copy(path, out / path.name, flushed=flushed)
    for path in inputs[outputs:]:
        read(path)


def main() -> None:
    """Read, copy and print the seconds."""
    parser = ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+")
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    start = perf_counter()
    copy_all(options.inputs, options.outputs, options.out, flushed=options.fsync)
    sys.stdout.write(f"{perf_counter() - start}\n")


if __name__ == "__main__":
    main()
