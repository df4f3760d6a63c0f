"""Updates of several tasks, drawn at random."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from taskvec.rules.quantiles import Entries
from taskvec.rules.rule import Stacks


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    """(task, n) float64, with equal magnitudes, zeros and sums that cancel."""
    tasks, n = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = torch.randint(-3, 4, (tasks, n), generator=generator) * 0.25
    fine = torch.randn(tasks, n, generator=generator, dtype=torch.float64)
    return coarse + fine * draw(st.sampled_from([0.0, 1.0]))


def entries_of(stack: Tensor) -> Entries:
    """Those of a stack (task, n) by itself."""
    return Entries.of_tensor(Stacks.single(stack), "")
