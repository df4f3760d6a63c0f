"""Linear forms evaluated at one tensor, in chunks that stay in cache.

What differences share is read once, and everything between reading and the result runs in place, so that
an edit costs little more than moving its bytes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskvec.compiled import compiled
from taskvec.later import torch
from taskvec.rules.pairs import Bits, Deltas, Pairs, stacked
from taskvec.weights.blocks import row_size, rows_of, rows_shape
from taskvec.weights.dtypes import rounded

if TYPE_CHECKING:
    from torch import Tensor

# Three float32 buffers of so many elements, and what they are made of, stay in the second cache of a core.
CHUNK = 1 << 16
"""Elements computed at a time."""

# Where the loops are compiled, the sums of a tile stay in the first cache.
_TILE = 1 << 12


class Operand(NamedTuple):
    """What is added: ``factor * (end - start)``."""

    factor: float
    end: "Tensor"
    start: "Tensor | None"


class Addend(NamedTuple):
    """The same in arrays: deltas in float32, or bits of the bfloat16 weights whose difference they are."""

    factor: float
    end: NDArray[Any]
    start: Bits | None


def add_bits(addends: Sequence[Addend], base: Bits) -> Bits | None:
    """``base`` plus what is added, in float32, rounded once to bfloat16; bits like those of ``base``.

    ``None`` where deltas and differences are mixed, which the compiled loop does not take.
    """
    starts = [addend.start for addend in addends]
    origins = tuple(start.reshape(-1) for start in starts if start is not None)
    if origins and len(origins) < len(addends):
        return None
    out, ends = np.empty_like(base), tuple(addend.end.reshape(-1) for addend in addends)
    factors = np.array([addend.factor for addend in addends], np.float32)
    _add(ends, origins or None, factors, base.reshape(-1), out.reshape(-1))
    return out


def total(
    operands: Sequence[Operand],
    precision: "torch.dtype",
    base: "Tensor | None" = None,
    dtype: "torch.dtype | None" = None,
) -> "Tensor":
    """``sum_i factor_i (end_i - start_i)`` as a new tensor; or ``base`` plus that.

    Args:
        operands: one or more, of one shape.
        precision: of computing, float32 or float64.
        base: weights (*rows) in any dtype.
        dtype: of the result, ``precision`` by default.

    The deltas are summed first: they are small, and only the last addition rounds at full size.
    """
    if base is not None and precision == torch.float32 and dtype == torch.bfloat16:
        added = _added(operands, base)
        if added is not None:
            return added
    out = torch.empty(operands[0].end.shape, dtype=dtype or precision)
    before, after, work = (torch.empty(CHUNK, dtype=precision) for _ in range(3))
    pieces = [(operand.factor, _chunks(operand.end), operand.start) for operand in operands]
    starts = {id(start): _chunks(start) for _, _, start in operands if start is not None}
    bases = None if base is None else _chunks(base)
    for place, target in enumerate(_chunks(out)):
        size = len(target)
        begun: Tensor | None = None
        start, summed, part = before[:size], after[:size], work[:size]
        for n, (factor, ends, origin) in enumerate(pieces):
            into = part if n else summed
            into.copy_(ends[place])
            if origin is not None:
                if origin is not begun:
                    start.copy_(starts[id(origin)][place])
                    begun = origin
                into.sub_(start)
            if n:
                summed.add_(part, alpha=factor)
            elif factor != 1.0:
                summed.mul_(factor)
        if bases is not None:
            summed.add_(start if begun is base else part.copy_(bases[place]))
        target.copy_(summed if precision == torch.float32 else rounded(summed, out.dtype))
    return out


def _added(operands: Sequence[Operand], base: "Tensor") -> "Tensor | None":
    """``base`` plus the operands, if both are bfloat16 and a compiled loop can."""
    sides = [side for operand in operands for side in (operand.end, operand.start) if side is not None]
    differences = any(operand.start is not None for operand in operands)
    if not _are_bfloat16(base, *(sides if differences else ())):
        return None
    addends = [
        Addend(o.factor, _bits(o.end), _bits(o.start))
        if o.start is not None
        else Addend(o.factor, o.end.reshape(-1).numpy() if not differences else _bits(o.end), None)
        for o in operands
    ]
    bits = add_bits(addends, _bits(base))
    return None if bits is None else torch.from_numpy(bits).view(torch.bfloat16).reshape(base.shape)


class DeltaStack:
    """The deltas of several directions at one place, read once, to be had some rows at a time.

    Args:
        operands: of each direction; ``None`` for zero.
        precision: of computing.
        shape: of what was read.
    """

    def __init__(
        self, operands: Sequence[Operand | None], precision: "torch.dtype", shape: Sequence[int]
    ) -> None:
        self._operands, self._dtype, self._shape = operands, precision, tuple(shape)
        self._pairs: Pairs | None = None
        sides = [(o.end, o.start) for o in self._operands if o is not None and o.start is not None]
        if len(sides) == len(operands) and precision == torch.float32 and _are_bfloat16(*sum(sides, ())):
            ends, starts = zip(*sides, strict=True)
            self._pairs = Pairs(tuple(map(_bits, ends)), tuple(map(_bits, starts)), (len(operands), *shape))

    def pairs(self, rows: slice | None = None) -> Deltas:
        """The deltas (direction, *rows) as pairs, if differences of bfloat16; else their ``stack``."""
        if self._pairs is None:
            return self.stack(rows)
        shape = rows_shape(self._shape, rows)
        return self._pairs.part(0 if rows is None else rows.start * row_size(shape), shape)

    def stack(self, rows: slice | None = None) -> "Tensor":
        """The deltas (direction, *rows), as a new tensor."""
        if self._pairs is not None:
            return stacked(self.pairs(rows))
        stack = torch.empty(len(self._operands), *rows_shape(self._shape, rows), dtype=self._dtype)
        for operand, deltas in zip(self._operands, stack, strict=True):
            if operand is None:
                deltas.zero_()
                continue
            deltas.copy_(rows_of(operand.end, rows))
            if operand.start is not None:
                deltas.sub_(rows_of(operand.start, rows))
        return stack


def _are_bfloat16(*tensors: "Tensor | None") -> bool:
    return all(tensor is not None and tensor.dtype == torch.bfloat16 for tensor in tensors)


def _bits(tensor: "Tensor") -> Bits:
    bits: Bits = tensor.reshape(-1).view(torch.uint16).numpy()
    return bits


@compiled
def _add(
    ends: tuple[NDArray[Any], ...],
    starts: tuple[Bits, ...] | None,
    factors: NDArray[np.float32],
    base: Bits,
    out: Bits,
) -> None:
    """``base + sum_i c_i end_i`` in float32, rounded once to bfloat16, ties to even.

    Args:
        ends: deltas in float32; or bfloat16 weights, if the deltas are their differences from ``starts``.
    """
    summed = np.empty(_TILE, np.float32)
    for first in range(0, len(out), _TILE):
        weights, target = base[first : first + _TILE], out[first : first + _TILE]
        summed[:] = 0
        for term in range(len(ends)):
            end, factor = ends[term][first : first + _TILE], factors[term]
            start = end if starts is None else starts[term][first : first + _TILE]
            for i in range(len(target)):
                if starts is None:
                    delta = end[i]
                else:
                    after, before = np.uint32(np.uint32(end[i]) << 16), np.uint32(np.uint32(start[i]) << 16)
                    delta = after.view(np.float32) - before.view(np.float32)
                summed[i] += factor * delta
        for i in range(len(target)):
            exact = np.float32(summed[i] + np.uint32(np.uint32(weights[i]) << 16).view(np.float32))
            bits = exact.view(np.uint32)
            nearest = np.uint32(bits + np.uint32(0x7FFF) + np.uint32(np.uint32(bits >> 16) & np.uint32(1)))
            target[i] = np.uint16(0x7FC0) if np.isnan(exact) else np.uint16(nearest >> 16)


def _chunks(tensor: "Tensor") -> "Sequence[Tensor]":
    return torch.split(tensor.reshape(-1), CHUNK)
