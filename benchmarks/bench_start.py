"""What does a command on files cost as a whole process, in units of starting Python and of importing torch?

Run as ``python benchmarks/bench_start.py OUT.json [ROUNDS]``. Runs take turns; processor seconds are told
beside the wall clock, as they mind other programs less.
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from measure import write
from processes import Cost, middle, run
from synthetic import llama, make

PROGRAM = [sys.executable, "-m", "taskvec"]


def commands(folder: Path) -> dict[str, list[str]]:
    """The runs by name, on models in a folder; what they write goes to ``out`` there."""
    models = make(llama("models", layers=8, hidden=1024), folder)
    base, out = str(models.base), str(folder / "out")
    vectors = [str(folder / f"{number}.safetensors") for number in range(3)]
    for vector, tuned in zip(vectors, models.tuned, strict=True):
        run([*PROGRAM, "diff", base, str(tuned), "-o", vector, "--quiet"])
    named = [word for name, path in zip("abc", vectors, strict=True) for word in ("-v", f"{name}={path}")]
    return {
        "python": [sys.executable, "-c", "pass"],
        "import torch": [sys.executable, "-c", "import torch"],
        "import taskvec": [sys.executable, "-c", "import taskvec"],
        "help": [*PROGRAM, "--help"],
        "inspect headers": [*PROGRAM, "inspect", base, "--headers"],
        "inspect": [*PROGRAM, "inspect", base],
        "diff": [*PROGRAM, "diff", base, str(models.tuned[0]), "-o", f"{out}.safetensors", "--quiet"],
        "apply 1": [*PROGRAM, "apply", base, "-v", f"a={vectors[0]}", "-o", out, "--quiet"],
        "apply 3": [*PROGRAM, "apply", base, *named, "-e", "0.3*a + 0.3*b + 0.3*c", "-o", out, "--quiet"],
    }


def main(out: Path, rounds: int = 7) -> None:
    """Measure and tell."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = commands(folder)
        costs: dict[str, list[Cost]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, words in runs.items():
                shutil.rmtree(folder / "out", ignore_errors=True)
                (folder / "out.safetensors").unlink(missing_ok=True)
                costs[name].append(run(words)[0])
    found = {name: middle(measured) for name, measured in costs.items()}
    torch = found["import torch"]
    table = Table("run", "s", "CPU s", "x import torch", title="whole processes, a model of 0.3 GB")
    for name, cost in found.items():
        table.add_row(name, f"{cost.seconds:.2f}", f"{cost.cpu:.2f}", f"{cost.seconds / torch.seconds:.2f}")
    Console().print(table)
    write(out, rounds=rounds, costs={name: asdict(cost) for name, cost in found.items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
