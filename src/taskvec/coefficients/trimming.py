"""Vectors as the ++ forms take them: trimmed, and without what disagrees in sign, but not added up."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.vectors import TaskVector, combine
from taskvec.vectors.delta import Summand
from taskvec.weights.blocks import row_blocks, row_size, rows_of, rows_shape

Signs = Mapping[str, NDArray[np.uint8]]
"""Tensor -> a bit for each entry, set where the elected sign is minus."""


class Agreeing(Summand):
    """The entries of a trimmed vector that have the elected sign; the others are zero."""

    def __init__(self, trimmed: TaskVector, signs: Signs) -> None:
        identity = ("agreeing", trimmed, id(signs))
        super().__init__(f"agreeing({trimmed.ref})", identity, trimmed.specs, trimmed.base, parts=(trimmed,))
        self._trimmed, self._signs = trimmed, signs

    def changes(self, name: str) -> bool:
        """Whether the trimmed vector does."""
        return bool(self._trimmed.terms_at(name))

    def compute(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """Trimmed, and zero where the sign differs."""
        if rows is not None and rows.step not in (None, 1):
            return rows_of(self.compute(name, None, dtype), rows)
        deltas = self._trimmed.read(name, rows, dtype)
        first = 0 if rows is None else rows.start * row_size(self.specs[name].shape)
        minus = _bits(self._signs[name], first, deltas.numel()).view(deltas.shape)
        return deltas * ((deltas < 0) == minus)


def trimmed(vectors: Mapping[str, TaskVector], share: float) -> dict[str, TaskVector]:
    """Each vector with its largest entries that agree with the sign of their sum over the vectors.

    Args:
        share: of the entries of a whole vector that are kept, before signs are compared.

    A sum of exactly zero elects plus. Memory: a bit for each entry of one vector.
    Source: steps 1 and 2 of TIES, Yadav et al. 2023 (arXiv:2306.01708), as AdaMerging++ takes them.
    """
    kept = {label: combine("ties", [of], keep=share, trim="global") for label, of in sorted(vectors.items())}
    signs = _elect(kept)
    return {label: TaskVector.of(Agreeing(vector, signs)) for label, vector in kept.items()}


def _elect(vectors: Mapping[str, TaskVector]) -> Signs:
    names = dict.fromkeys(name for of in vectors.values() for name in of if of.terms_at(name))
    return {name: _elected([of for of in vectors.values() if name in of], name) for name in names}


def _elected(vectors: list[TaskVector], name: str) -> NDArray[np.uint8]:
    """The signs of one tensor, packed; blocks are of whole bytes."""
    shape = vectors[0].specs[name].shape
    packed = []
    for rows in row_blocks(shape, 8):
        total = torch.zeros(rows_shape(shape, rows), dtype=torch.float64)
        for vector in vectors:
            total += vector.read(name, rows)
        packed.append(np.packbits((total < 0).numpy()))
    return np.concatenate(packed)


def _bits(packed: NDArray[np.uint8], first: int, count: int) -> Tensor:
    """Some entries' bits, as booleans (count,)."""
    start, skipped = divmod(first, 8)
    stop = start + (skipped + count + 7) // 8
    bits = np.unpackbits(packed[start:stop])[skipped : skipped + count]
    return torch.from_numpy(bits.view(np.bool_))
