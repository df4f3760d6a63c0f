"""The floor under any edit of files: read every input once, write one output; no arithmetic, one thread.

Run as ``python benchmarks/copying.py OUT INPUT...``, with ``--fsync`` before OUT to flush. As many bytes are
written as the first ``--like`` inputs hold. Prints the seconds that it took, without those of starting.
"""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

CHUNK = 1 << 19
"""Bytes moved at a time: stays in cache."""


def copy(inputs: list[Path], outputs: int, out: Path, *, flushed: bool) -> None:
    """Read all inputs; write the first ``outputs`` of them, file by file."""
    buffer = memoryview(bytearray(CHUNK))
    out.mkdir()
    for place, path in enumerate(inputs):
        with path.open("rb", buffering=0) as source:
            if place >= outputs:
                while source.readinto(buffer):
                    pass
                continue
            with (out / path.name).open("wb", buffering=0) as target:
                while count := source.readinto(buffer):
                    target.write(buffer[:count])
                if flushed:
                    os.fsync(target.fileno())


def main() -> None:
    """Copy and print the seconds."""
    parser = ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("inputs", type=Path, nargs="+")
    parser.add_argument("--outputs", type=int, required=True)
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    start = perf_counter()
    copy(options.inputs, options.outputs, options.out, flushed=options.fsync)
    sys.stdout.write(f"{perf_counter() - start}\n")


if __name__ == "__main__":
    main()
