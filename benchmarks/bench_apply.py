"""What does an edit on disk cost, in units of copying the same bytes?

Run as ``python benchmarks/bench_apply.py OUT.json``. The floor reads the base and writes it again, flushed
to the disk like the edit. Every edit is compared with a float64 computation before any clock starts.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from measure import compare, write
from taskvec import TaskVector, apply, combine, open_weights, save_weights

TENSORS, ROWS, COLUMNS = 24, 1024, 1024
ROUNDS = 9


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

        def edited(vector: TaskVector) -> Callable[[], object]:
            return lambda: save_weights(apply(start, vector), folder / "edited.safetensors", force=True)

        times = compare(
            {
                "floor: copy": lambda: copy(base, folder / "copied"),
                "1 vector": edited(0.4 * one),
                "2 vectors": edited(0.4 * one - 0.3 * two),
                "4 vectors": edited(sum((0.25 * vector for vector in vectors), 0 * one)),
                "2 models, subtracted lazily": edited(0.4 * TaskVector.between(start, tuned)),
                "TIES of 2": edited(combine("ties", [one, two])),
                "diff": lambda: TaskVector.between(start, tuned).save(
                    folder / "diff.safetensors", force=True
                ),
                "norm": one.norm,
            },
            ROUNDS,
            warm_up=2,
        )
    table = Table("run", "ms", "x floor")
    for name, seconds in times.items():
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{seconds / times['floor: copy']:.2f}")
    Console().print(table)
    write(out, bytes=4 * TENSORS * ROWS * COLUMNS, rounds=ROUNDS, seconds=times)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_apply.json"))
