"""Deltas as the pairs of bfloat16 weights whose differences they are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from taskvec.compiled import compiled
from taskvec.later import torch

if TYPE_CHECKING:
    from torch import Tensor

Bits = NDArray[np.uint16]
"""Of bfloat16 numbers: the upper half of a float32."""


@dataclass(frozen=True)
class Pairs:
    """What a stack of deltas (task, *shape) in float32 is computed from, in half the memory or less.

    A loop that takes the differences as it goes spares writing and reading the stack. To all else this is a
    sequence of tensors, (*shape) for each task.

    Attributes:
        ends, starts: of each task the bits (n,) of the fine-tuned and of the pre-trained weights.
        shape: (task, *shape).
    """

    ends: tuple[Bits, ...]
    starts: tuple[Bits, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> "torch.dtype":
        """Of the deltas."""
        return torch.float32

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, task: int) -> "Tensor":
        only = slice(task, task + 1)
        return Pairs(self.ends[only], self.starts[only], (1, *self.shape[1:])).stack()[0]

    def __iter__(self) -> "Iterator[Tensor]":
        return (self[task] for task in range(len(self)))

    def part(self, first: int, shape: Sequence[int]) -> "Pairs":
        """Those from the entry ``first`` on that fill ``shape``."""
        entries = slice(first, first + prod(shape))
        ends, starts = (tuple(bits[entries] for bits in side) for side in (self.ends, self.starts))
        return Pairs(ends, starts, (len(self), *shape))

    def stack(self) -> "Tensor":
        """The deltas, as a new tensor."""
        stack = torch.empty(self.shape)
        _subtract(self.ends, self.starts, stack.reshape(len(self), -1).numpy())
        return stack


Deltas = Union["Tensor", Pairs]
"""A stack of deltas (task, *shape)."""


def entries_of(deltas: Deltas, task: int) -> tuple[NDArray[Any], Bits | None]:
    """The entries of one task (n,); or the bits of both weights whose differences they are."""
    if isinstance(deltas, Pairs):
        return deltas.ends[task], deltas.starts[task]
    return deltas[task].reshape(-1).numpy(), None


def stacked(deltas: Deltas) -> "Tensor":
    """As one tensor."""
    return deltas.stack() if isinstance(deltas, Pairs) else deltas


@compiled
def _subtract(ends: tuple[Bits, ...], starts: tuple[Bits, ...], out: NDArray[np.float32]) -> None:
    """``end_i - start_i`` in float32, (i, n)."""
    for task in range(len(ends)):
        end, start, row = ends[task], starts[task], out[task]
        for i in range(len(row)):
            after, before = np.uint32(np.uint32(end[i]) << 16), np.uint32(np.uint32(start[i]) << 16)
            row[i] = after.view(np.float32) - before.view(np.float32)
