"""Linear forms evaluated at one tensor, in chunks that stay in cache.

What differences share is read once, and everything between reading and the result runs in place, so that
an edit costs little more than moving its bytes.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.vectors.sources import Difference, Source
from taskvec.weights import Weights
from taskvec.weights.dtypes import rounded
from taskvec.weights.source import rows_of, rows_shape

CHUNK = 1 << 16
"""Elements computed at a time."""

Terms = Sequence[tuple[Source, float]]
Bits = NDArray[np.uint16]


class Spot(NamedTuple):
    """Some rows of one tensor, in a precision.

    Attributes:
        name: of the tensor.
        rows: slice of its first axis; ``None`` for all.
        dtype: float32 or float64.
    """

    name: str
    rows: slice | None
    dtype: torch.dtype


class Origins:
    """The weights that differences start from, at one spot, each read once, in the dtype of their file.

    Args:
        known: weights that are read already, and what was read.
    """

    def __init__(self, spot: Spot, known: tuple[Weights, Tensor] | None = None) -> None:
        self._spot = spot
        self._read: dict[Hashable, Tensor] = {} if known is None else {known[0].identity: known[1]}

    def of(self, weights: Weights) -> Tensor:
        """The weights at the spot."""
        if weights.identity not in self._read:
            self._read[weights.identity] = weights.read(self._spot.name, self._spot.rows)
        return self._read[weights.identity]


class _Operand(NamedTuple):
    """What is added: ``factor * (end - start)``."""

    factor: float
    end: Tensor
    start: Tensor | None


def total(
    terms: Terms,
    spot: Spot,
    origins: Origins,
    base: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``sum_i c_i source_i``, as a new tensor in the precision of the spot; or ``base`` plus that.

    Args:
        terms: one or more.
        base: weights (*rows) in any dtype.
        dtype: of the result, the precision of the spot by default.

    The deltas are summed first: they are small, and only the last addition rounds at full size.
    """
    operands = [_operand(source, factor, spot, origins) for source, factor in terms]
    out = torch.empty(operands[0].end.shape, dtype=dtype or spot.dtype)
    before, after, work = (torch.empty(CHUNK, dtype=spot.dtype) for _ in range(3))
    pieces = [(one.factor, _chunks(one.end), one.start) for one in operands]
    starts = {id(one.start): _chunks(one.start) for one in operands if one.start is not None}
    bases = None if base is None else _chunks(base)
    for place, target in enumerate(_chunks(out)):
        size = len(target)
        begun: Tensor | None = None
        start, summed, part = before[:size], after[:size], work[:size]
        for n, (factor, ends, own) in enumerate(pieces):
            into = part if n else summed
            into.copy_(ends[place])
            if own is not None:
                if own is not begun:
                    start.copy_(starts[id(own)][place])
                    begun = own
                into.sub_(start)
            if n:
                summed.add_(part, alpha=factor)
            elif factor != 1.0:
                summed.mul_(factor)
        if bases is not None:
            summed.add_(start if begun is base else part.copy_(bases[place]))
        target.copy_(summed if spot.dtype == torch.float32 else rounded(summed, out.dtype))
    return out


class Forms:
    """Several linear forms at one spot, read once, to be had some rows at a time.

    Args:
        forms: the terms of each; one without terms is zero.
        spot: where.
        shape: of what is there.
    """

    def __init__(self, forms: Sequence[Terms], spot: Spot, shape: Sequence[int]) -> None:
        origins = Origins(spot)
        self._dtype, self._shape = spot.dtype, tuple(shape)
        self._operands = [_joined(terms, spot, origins) for terms in forms]

    def stack(self, rows: slice | None = None) -> Tensor:
        """The deltas (form, *rows), as a new tensor."""
        shape = rows_shape(self._shape, rows)
        stack = torch.empty(len(self._operands), *shape, dtype=self._dtype)
        for one, deltas in zip(self._operands, stack, strict=True):
            if one is None:
                deltas.zero_()
            elif one.start is None:
                deltas.copy_(rows_of(one.end, rows))
            else:
                _subtract(rows_of(one.end, rows), rows_of(one.start, rows), deltas)
        return stack


def _subtract(end: Tensor, start: Tensor, out: Tensor) -> None:
    """``end - start``, in the precision of what it is written to."""
    if end.dtype == start.dtype == torch.bfloat16 and out.dtype == torch.float32:
        after, before = (tensor.reshape(-1).view(torch.uint16).numpy() for tensor in (end, start))
        _subtract_bfloat16(after, before, out.reshape(-1).numpy())
    else:
        out.copy_(end).sub_(start)


@compiled
def _subtract_bfloat16(end: Bits, start: Bits, out: NDArray[np.float32]) -> None:
    for i in range(len(out)):
        after, before = np.uint32(np.uint32(end[i]) << 16), np.uint32(np.uint32(start[i]) << 16)
        out[i] = after.view(np.float32) - before.view(np.float32)


def _joined(terms: Terms, spot: Spot, origins: Origins) -> _Operand | None:
    """One operand of factor 1 that a form comes to; ``None`` for zero."""
    if not terms:
        return None
    if len(terms) == 1 and terms[0][1] == 1.0:
        return _operand(*terms[0], spot, origins)
    return _Operand(1.0, total(terms, spot, origins), None)


def _operand(source: Source, factor: float, spot: Spot, origins: Origins) -> _Operand:
    if isinstance(source, Difference):
        return _Operand(factor, source.tuned.read(spot.name, spot.rows), origins.of(source.base))
    return _Operand(factor, source.delta(*spot), None)


def _chunks(tensor: Tensor) -> Sequence[Tensor]:
    return torch.split(tensor.reshape(-1), CHUNK)
