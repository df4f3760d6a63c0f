"""What the benchmarks share: runs that take turns, allocated memory, the machine, results on disk."""

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter, time_ns

import torch

from taskvec.studies.cost import Memory


def compare(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, float]:
    """Median seconds per run. The runs take turns, so drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + warm_up):
        for name, run in runs.items():
            start = clock()
            run()
            if turn >= warm_up:
                seconds[name].append(clock() - start)
    return {name: median(s) for name, s in seconds.items()}


def peak(run: Callable[[], object]) -> int:
    """Most bytes that torch held at once inside a run, above what was there before."""
    with Memory() as memory:
        begin = time_ns()
        run()
        end = time_ns()
    return memory.peak(begin, end)


def machine() -> dict[str, object]:
    """What a reader must know of where this ran."""
    facts = {"cpu": platform.processor() or platform.machine()}
    described = Path("/proc/cpuinfo")
    if described.exists():
        lines = dict(line.split("\t", 1) for line in described.read_text().splitlines() if "\t" in line)
        facts = {
            "cpu": lines.get("model name", "\t: unknown").split(":")[-1].strip(),
            "bf16 units": "yes" if "bf16" in described.read_text() else "no",
        }
    return {
        **facts,
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(out: Path, **results: object) -> None:
    """The results and the machine as JSON."""
    out.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n", encoding="utf-8")
