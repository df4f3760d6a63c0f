"""What does it cost to make a model by each rule, in units of measuring it once?

Run as ``python benchmarks/bench_methods.py OUT.json``. Eight random vectors of the built-in model, the first
200 validation examples of its eight tasks. Memory is compared with what the vectors take, dense in float32.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import taskvec as tv
from measure import write
from taskvec.memory import Peak
from taskvec.merging import every_method
from taskvec.merging.method import Bench, Method
from taskvec.merging.rules import RuleMethod

RELATIVE = 0.03
"""The norm of each vector, relative to that of the model: about as after a short fine-tuning."""


def world() -> Bench:
    """The built-in model, its tasks, and a vector for each."""
    backbone, tasks = tv.load_backbone("builtin"), list(tv.load_suite("builtin8").tasks.values())[:8]
    evaluator = tv.Evaluator(backbone, tasks, limits={"validation": 200})
    generator = torch.Generator().manual_seed(0)
    base, vectors = tv.open_weights(backbone.source), {}
    for task in tasks:
        moved = {name: _moved(value, generator) for name, value in evaluator.pretrained.items()}
        vectors[task.name] = tv.TaskVector.between(base, {**base, **moved})
    return Bench(evaluator, vectors)


def _moved(value: Tensor, generator: torch.Generator) -> Tensor:
    scale = RELATIVE * value.norm() / value.numel() ** 0.5
    moved: Tensor = value + scale * torch.randn(value.shape, generator=generator)
    return moved


def rules(bench: Bench) -> Iterator[Method]:
    """Every rule and chain that these vectors fit."""
    for method in every_method():
        if isinstance(method, RuleMethod) and not method.unfit(bench):
            yield method


def main(out: Path) -> None:
    """Make every model once, the processor's time on one thread; then measure the last one."""
    torch.set_num_threads(1)
    bench = world()
    size = sum(4 * value.numel() for value in bench.evaluator.pretrained.values())
    dense = size * len(bench.vectors)
    seconds, peaks = {}, {}
    for method in rules(bench):
        with Peak() as peak:
            begun = process_time()
            model = method.make(bench)
            seconds[method.name] = process_time() - begun
        peaks[method.name] = peak.bytes or 0
    measuring = []
    for alpha in (0.2, 0.3):  # the first prepares the data
        begun = process_time()
        for task in bench.tasks:
            model.value(task, "validation", alpha)
        measuring.append(process_time() - begun)
    table = Table("rule", "s", "times measuring once", "MiB", "times the vectors")
    for name in sorted(seconds, key=lambda name: -seconds[name]):
        table.add_row(
            name,
            f"{seconds[name]:.2f}",
            f"{seconds[name] / measuring[1]:.2f}",
            f"{peaks[name] / 2**20:.0f}",
            f"{peaks[name] / dense:.2f}",
        )
    Console().print(table)
    write(out, measuring=measuring[1], vectors_bytes=dense, seconds=seconds, peak_bytes=peaks)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "bench_methods.json"))
