"""Programs in several processes at once, as ``torchrun`` starts them on one machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

SOURCES = os.pathsep.join(map(str, (Path(__file__).parents[1] / "src", Path(__file__).parent)))


def launch(
    arguments: Sequence[object], processes: int, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run a script, or ``-m`` and a module, with arguments in so many processes; output and errors of all."""
    before = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCES, **environment}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env={**before, **told},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lines_of(ended: "subprocess.CompletedProcess[str]") -> list[str]:
    """What taskvec itself said went wrong."""
    return [line for line in ended.stderr.splitlines() if line.startswith("taskvec: ")]


def leave() -> NoReturn:
    """End a script that is done. An interpreter that ends by itself was now and then aborted there."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
