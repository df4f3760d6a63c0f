"""What does it cost that processes share a step: gradients in one flat tensor, summed over them?

Run as ``python benchmarks/bench_distributed.py OUT.json [BATCH …]``. It starts two processes of one thread
that talk by gloo, as ``torchrun`` does. ViT-B/32 with random weights (87 M parameters, a frozen head of 100
classes); each process computes a forward and backward pass of BATCH examples, with and without the sum, which
does not depend on the batch. The sum is compared with the plain one first. Seconds of the clock, the ways
taking turns.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from bench_tangent import vit
from measure import compare, write
from taskvec.group import ALONE, Group, joined
from taskvec.training.sharing import Terms, add_shared
from taskvec.training.slopes import taken

ROUNDS = 3
BATCHES = (4, 16)


class Step:
    """A step's gradients in one process."""

    def __init__(self, batch: int, rank: int) -> None:
        self.model, _ = vit()
        draw = torch.Generator().manual_seed(rank)
        self.images = torch.randn(batch, 3, 224, 224, generator=draw)
        self.labels = torch.randint(100, (batch,), generator=draw)
        self.leaves = {
            name: value.detach().clone().requires_grad_() for name, value in self.model.named_parameters()
        }

    def add(self) -> Terms:
        """The gradient of this process's examples, added to the leaves."""
        logits = functional_call(self.model, self.leaves, (), {"pixel_values": self.images})
        loss = cross_entropy(logits, self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return [[loss.detach()]]

    def taken(self, group: Group) -> Callable[[], None]:
        """A step, shared by a group, that leaves nothing behind."""

        def run() -> None:
            add_shared(group, list(self.leaves.values()), self.add)
            taken(list(self.leaves.values()))

        return run

    def check(self, group: Group) -> None:
        """Refuse a sum that is not that of the processes."""
        leaves = list(self.leaves.values())
        self.add()
        wanted = taken(leaves)[0]
        assert wanted is not None
        plain = torch.stack(group.gather(wanted)).sum(0)
        add_shared(group, leaves, self.add)
        found = taken(leaves)[0]
        assert found is not None
        torch.testing.assert_close(found, plain)


def measure(out: Path, batches: list[int]) -> None:
    """What the first process finds, written."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results = {}
    with joined() as group:
        for batch in batches:
            step = Step(batch, group.rank)
            step.check(group)
            seconds = compare({"alone": step.taken(ALONE), "shared": step.taken(group)}, ROUNDS)
            results[str(batch)] = {**seconds, "share": 1 - seconds["alone"] / seconds["shared"]}
        if group.first:
            for name, of in results.items():
                Console().print(
                    f"{name} examples a process: {of['shared']:.2f} s a step, {of['share']:.1%} the sum"
                )
            write(out, processes=group.size, batches=results)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), list(map(int, sys.argv[3:])))
    else:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "--measure"]
        given = sys.argv[1:2] + (sys.argv[2:] or list(map(str, BATCHES)))
        subprocess.run([sys.executable, *start, *given], check=True)
