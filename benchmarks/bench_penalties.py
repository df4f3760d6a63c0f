"""What does a penalty by curvature add to a training step, in units of the step?

Run as ``python benchmarks/bench_penalties.py OUT.json [BATCH]``. The shape of ViT-B/32 with random weights;
factors are random, of the shapes that would be measured, for their cost does not depend on what they hold.
A step is the forward and backward pass of all parameters in tangent space at batch 128, or BATCH, without the
optimizer. The penalty's cost does not depend on the batch, so that at a smaller one it is a larger share.
Times are CPU seconds of one thread.
"""

import sys
from pathlib import Path
from time import process_time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench_tangent import vit
from measure import compare, write
from taskvec.statistics.blocks import Block
from taskvec.tangent.linearization import Linearization
from taskvec.training.penalties.quadratic import Energy, Kronecker, Scaled, Turned, energy

ROUNDS = 1


def blocks_of(shapes: dict[str, torch.Size]) -> list[Block]:
    """Every matrix but tables, with its bias; vectors that are no bias of one."""
    found = []
    for name, shape in shapes.items():
        bias = name.removesuffix("weight") + "bias"
        if len(shape) > 1 and "embedding.weight" not in name.replace("patch_", ""):
            found.append(Block(name, bias if bias in shapes else None, shape))
        elif len(shape) == 1 and len(shapes.get(name.removesuffix("bias") + "weight", shape)) == 1:
            found.append(Block(name, None, shape))
    return found


def positive(size: int) -> Tensor:
    """Of the size of a factor; of low rank, which is quick to make."""
    root = torch.randn(size, 8)
    return root @ root.T / size


def forms(kind: str, shapes: dict[str, torch.Size]) -> list[Energy]:
    """A penalty's forms."""
    if kind == "diagonal":
        return [Energy(name, [Scaled(torch.rand(shape))]) for name, shape in shapes.items()]
    found = []
    for block in blocks_of(shapes):
        rows, columns = block.sides
        a, b = positive(columns), positive(rows)
        form = Kronecker(a, b) if kind == "tak" else Turned(a, b, torch.rand(rows, columns))
        found.append(Energy(block, [form]))
    return found


def size_of(terms: list[Energy]) -> int:
    """Bytes of all factors."""
    return sum(value.nbytes for term in terms for form in term.forms for value in vars(form).values())


def main(out: Path, batch: int) -> None:
    """Time a plain step and each penalty."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, _ = vit()
    inputs = {"pixel_values": torch.randn(batch, 3, 224, 224)}
    labels = torch.arange(batch) % 100
    theta0 = {name: value.detach() for name, value in model.named_parameters()}
    lin = Linearization(
        lambda params, **given: torch.func.functional_call(model, dict(params), (), given), theta0
    )
    tau = {name: (0.01 * torch.randn(value.shape)).requires_grad_() for name, value in theta0.items()}
    leaves = list(tau.values())
    shapes = {name: value.shape for name, value in theta0.items()}

    def step() -> None:
        torch.autograd.grad(cross_entropy(lin(tau, **inputs), labels), leaves, allow_unused=True)

    seconds: dict[str, float] = {}
    held: dict[str, int] = {}
    for kind in ("tak", "tak, ekfac", "diagonal"):
        terms = forms(kind, shapes)
        held[kind] = size_of(terms)

        def penalty(terms: list[Energy] = terms) -> None:
            torch.autograd.grad(energy(terms, tau), leaves, allow_unused=True)

        seconds |= compare({kind: penalty}, ROUNDS, 0, clock=process_time)
    seconds |= compare({"tangent step": step}, ROUNDS, 0, clock=process_time)
    plain = seconds["tangent step"]
    table = Table("step", "CPU s", "x plain", "MB of factors", title=f"ViT-B/32, batch {batch}")
    table.add_row("tangent", f"{plain:.2f}", "1.00", "")
    for kind, size in held.items():
        table.add_row(
            f"with {kind}",
            f"{plain + seconds[kind]:.2f}",
            f"{1 + seconds[kind] / plain:.3f}",
            f"{size / 1e6:.0f}",
        )
    Console().print(table)
    write(out, batch=batch, seconds=seconds, factors=held, parameters=sum(value.nbytes for value in leaves))


if __name__ == "__main__":
    main(
        Path(sys.argv[1] if len(sys.argv) > 1 else "bench_penalties.json"),
        int(sys.argv[2]) if len(sys.argv) > 2 else 128,
    )
