"""Rows of outputs kept by example, and found again for the examples of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where the rows of each example are, once those of one example stand behind those of another.

    Args:
        order: (R,), which of the rows as they came stands at each place.
        starts: (N + 1,), where the rows of each example begin.
    """

    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, index: Tensor) -> "Rows":
        """Of rows that came in any order of examples, ``index`` (R,) telling whose each is."""
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), index.bincount().cumsum(0)])
        return cls(index.argsort(stable=True), starts)

    def places(self, index: Tensor) -> Tensor:
        """Where the rows of a batch are, with all rows of each of its examples ``index`` (r,)."""
        examples, counts = torch.unique_consecutive(index, return_counts=True)
        begins, lengths = self.starts[examples], self.starts[examples + 1] - self.starts[examples]
        within = torch.arange(len(index)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        found: Tensor = begins.repeat_interleave(counts) + within % lengths.repeat_interleave(counts)
        return found
