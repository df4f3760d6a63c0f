"""What does a combiner cost beside the backward passes that it needs anyway?

Run as ``python benchmarks/bench_combiners.py OUT.json [BATCH …]``. ViT-B/32 with random weights (87 M
parameters, a frozen head of 100 classes), eight tasks with a batch each. The floor is a forward and backward
pass for every task, gradients added up, as without a combiner. A combiner keeps eight gradients, multiplies
them with each other, and adds them up with the weights that it finds; with little memory it computes them
anew. What it costs does not depend on the batch, so a small one is the hard case. Products and gradient are
compared with the plain ones first. Times are CPU seconds of one thread, the ways taking turns; memory is the
peak of bytes that are allocated inside a step.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bench_tangent import vit
from measure import compare, peak, write
from taskvec.combiners import combiner_called
from taskvec.training.joint import Joint
from taskvec.training.slopes import gram_of, taken

ROUNDS = 3
TASKS = 8
BATCHES = (4,)


class Steps:
    """Gradients of eight tasks at the same weights, combined in several ways."""

    def __init__(self, batch: int) -> None:
        self.model, _ = vit()
        draw = torch.Generator().manual_seed(0)
        self.images = torch.randn(TASKS, batch, 3, 224, 224, generator=draw)
        self.labels = torch.randint(100, (TASKS, batch), generator=draw)
        self.leaves = {
            name: value.detach().clone().requires_grad_() for name, value in self.model.named_parameters()
        }

    def add(self, task: int, factor: float = 1.0, only: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The gradient of one task's loss, times a factor, added to leaves."""
        logits = functional_call(self.model, self.leaves, (), {"pixel_values": self.images[task]})
        loss = cross_entropy(logits, self.labels[task])
        torch.autograd.backward(factor * loss, inputs=only)
        return [loss.detach()]

    def passes(self) -> None:
        """A pass for each task, and nothing else."""
        for task in range(TASKS):
            self.add(task)
        taken(list(self.leaves.values()))

    def combined(self, name: str, room: float) -> Callable[[], None]:
        """A step of a combiner."""
        joint = Joint(combiner_called(name), [f"task{number}" for number in range(TASKS)], 0, room)

        def step() -> None:
            joint.add(self.leaves, self.add, 0, lr=0.1)
            taken(list(self.leaves.values()))

        return step

    def check(self) -> None:
        """Refuse to time a wrong gradient."""
        leaves = list(self.leaves.values())
        rows = []
        for task in range(TASKS):
            self.add(task)
            rows.append(taken(leaves))
        flat = torch.stack([torch.cat([leaf.flatten() for leaf in row if leaf is not None]) for row in rows])
        gram = torch.stack([flat.double() @ row.double() for row in flat])
        assert float((gram_of(rows) - gram).abs().max() / gram.max()) < 1e-5
        names = [f"task{number}" for number in range(TASKS)]
        _, facts = Joint(combiner_called("pcgrad"), names, 0).add(self.leaves, self.add, 0, lr=0.1)
        found = torch.cat([leaf.flatten() for leaf in taken(leaves) if leaf is not None])
        exact = torch.tensor([facts[f"weight/{name}"] for name in names]) @ flat
        assert float((found - exact).norm() / exact.norm()) < 1e-5


def main(out: Path, batches: Sequence[int]) -> None:
    """Time every way at every batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for batch in batches:
        steps = Steps(batch)
        steps.check()
        runs = {"8 backward passes": steps.passes, "pcgrad": steps.combined("pcgrad", 1e12)}
        anew = {"pcgrad, 1 GB": steps.combined("pcgrad", 1e9)}
        seconds = compare(runs, ROUNDS, clock=process_time)
        seconds |= compare(anew, 1, warm_up=0, clock=process_time)
        found[f"batch {batch}"] = of = {
            name: {"seconds": seconds[name], "bytes": float(peak(run))} for name, run in (runs | anew).items()
        }
        table = Table("step", "CPU s", "x 8 passes", "peak MB", title=f"ViT-B/32, {TASKS} x batch {batch}")
        for name, cost in of.items():
            ratio = cost["seconds"] / of["8 backward passes"]["seconds"]
            table.add_row(name, f"{cost['seconds']:.2f}", f"{ratio:.3f}", f"{cost['bytes'] / 1e6:.0f}")
        Console().print(table)
    write(out, rounds=ROUNDS, tasks=TASKS, steps=found)


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "bench_combiners.json"),
        [int(batch) for batch in sys.argv[2:]] or BATCHES,
    )
