"""What does an edit on disk cost, in units of copying the same bytes?

Run as ``python benchmarks/bench_apply.py OUT.json``. The floor reads the base and writes it again, flushed
to the disk like the edit. Every edit is compared with a float64 computation before any clock starts.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from taskvec import TaskVector, apply, combine, open_weights, save_weights

TENSORS, ROWS, COLUMNS = 24, 1024, 1024
ROUNDS = 9


def compare(runs: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds per run. The runs take turns, so drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):  # two turns to warm up
        for name, run in runs.items():
            start = perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(perf_counter() - start)
    return {name: median(s) for name, s in seconds.items()}


def make_inputs(folder: Path) -> tuple[Path, list[TaskVector]]:
    """A base of 100 MB in float32, and four stored task vectors."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> dict[str, torch.Tensor]:
        shape = (ROWS, COLUMNS)
        return {f"layer.{i}": scale * torch.randn(shape, generator=generator) for i in range(TENSORS)}

    base = save_weights(noise(1.0), folder / "base.safetensors")
    places = [TaskVector.from_tensors(noise(1e-3), base).save(folder / f"{i}.safetensors") for i in range(4)]
    return base, [TaskVector.load(place) for place in places]


def check(base: Path, vectors: list[TaskVector]) -> None:
    """Refuse to time a wrong result."""
    start = open_weights(base)
    edited = apply(start, 0.4 * vectors[0] - 0.3 * vectors[1])
    for name in start:
        exact = start[name].double() + 0.4 * vectors[0][name].double() - 0.3 * vectors[1][name].double()
        torch.testing.assert_close(edited[name].double(), exact, rtol=2e-7, atol=1e-9)


def copy(source: Path, target: Path) -> None:
    """Read and write again, flushed."""
    with target.open("wb") as file:
        file.write(source.read_bytes())
        file.flush()
        os.fsync(file.fileno())


def main(out: Path) -> None:
    """Time edits of one, two and four vectors, lazily subtracted ones, and TIES."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base, vectors = make_inputs(folder)
        check(base, vectors)
        start = open_weights(base)
        start.fingerprint()
        one, two = vectors[:2]
        tuned = save_weights(apply(start, one), folder / "tuned.safetensors")

        def write(vector: TaskVector) -> Callable[[], object]:
            return lambda: save_weights(apply(start, vector), folder / "edited.safetensors", force=True)

        times = compare(
            {
                "floor: copy": lambda: copy(base, folder / "copied"),
                "1 vector": write(0.4 * one),
                "2 vectors": write(0.4 * one - 0.3 * two),
                "4 vectors": write(sum((0.25 * vector for vector in vectors), 0 * one)),
                "2 models, subtracted lazily": write(0.4 * TaskVector.between(start, tuned)),
                "TIES of 2": write(combine("ties", [one, two])),
                "diff": lambda: TaskVector.between(start, tuned).save(
                    folder / "diff.safetensors", force=True
                ),
                "norm": one.norm,
            }
        )
    table = Table("run", "ms", "x floor")
    for name, seconds in times.items():
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{seconds / times['floor: copy']:.2f}")
    Console().print(table)
    facts = {
        "bytes": 4 * TENSORS * ROWS * COLUMNS,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rounds": ROUNDS,
    }
    out.write_text(json.dumps({**facts, "seconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_apply.json"))
