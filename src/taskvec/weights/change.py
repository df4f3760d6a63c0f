"""How far an edit goes, measured block by block in the pass that writes it."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskvec.compiled import reassociated
from taskvec.later import torch
from taskvec.weights.dtypes import EDITABLE, as_float32, tensor_of

if TYPE_CHECKING:
    from torch import Tensor

_TILE = 1 << 12  # entries summed in float32 before float64 takes over
_CHUNK = 1 << 19  # entries converted at a time, where the dtypes are not those of the compiled loops

_SMALL = 1 << 16  # entries up to which it is not worth while to load a compiler


class Change(NamedTuple):
    """How far tensors, or parts of them, are from what they were.

    Attributes:
        entries: how many there are.
        changed: how many are other than before.
        distance: the squared Euclidean norm of the difference.
        norm: the squared Euclidean norm before.
    """

    entries: int = 0
    changed: int = 0
    distance: float = 0.0
    norm: float = 0.0

    @property
    def finite(self) -> bool:
        """Whether all entries, before and after, are finite; false also where a square overflows."""
        return math.isfinite(self.distance) and math.isfinite(self.norm)

    @property
    def share(self) -> float:
        """The share of entries that changed, 0 to 1."""
        return self.changed / self.entries if self.entries else 0.0

    @property
    def relative(self) -> float:
        """The norm of the difference in units of the norm before; infinite where that is zero."""
        if not self.distance:
            return 0.0
        return math.sqrt(self.distance / self.norm) if self.norm else math.inf

    def times(self, factor: float) -> "Change":
        """An estimate for ``factor`` times as many entries, of which these are a sample."""
        entries, changed = round(factor * self.entries), round(factor * self.changed)
        return Change(entries, changed, factor * self.distance, factor * self.norm)


def total(changes: Iterable[Change]) -> Change:
    """The change of several tensors together."""
    return Change(*(sum(column) for column in zip(*changes, strict=True)))


def add_to(totals: dict[str, Change], name: str, more: Change | None) -> None:
    """Add to the change of a tensor, in place, if there is one."""
    if more is not None:
        totals[name] = total((totals.get(name, Change()), more))


def between(before: "Tensor", after: "Tensor") -> Change:
    """The change from one block to another of the same shape.

    >>> between(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))
    Change(entries=2, changed=1, distance=1.0, norm=25.0)
    """
    if before.dtype == after.dtype == torch.bfloat16:
        return between_bits(_bits(before), _bits(after))
    return _measure_in_range(before, after, step=False)


def between_bits(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> Change:
    """The same of bfloat16, given as bits."""
    if before.size > _SMALL:
        change = Change(before.size, *_sums_of_bits(before.reshape(-1), after.reshape(-1)))
        if _is_exact(change):
            return change
        return _measure(tensor_of(before, "BF16"), tensor_of(after, "BF16"), torch.float64, step=False)
    start, end = (as_float32(bits, "BF16").astype(np.float64) for bits in (before, after))
    return _few(start, end, step=False)


def step(before: "Tensor", delta: "Tensor") -> Change:
    """The change that adding ``delta`` is, before it is rounded."""
    return _measure_in_range(before, delta, step=True)


def step_of_array(before: NDArray[Any], code: str, delta: NDArray[np.float32]) -> Change:
    """The same where weights of 32 bits or less are given as ``Weights.read_array`` does."""
    for wide in (np.float32, np.float64):
        old, new = as_float32(before, code).astype(wide, copy=False), delta.astype(wide, copy=False)
        if before.size <= _SMALL:
            return _few(old, new, step=True)
        change = Change(before.size, *_sums(old.reshape(-1), new.reshape(-1), True))
        if _is_exact(change):
            break
    return change


def warm_up(codes: Iterable[str]) -> None:
    """Load, or compile, the loops for these element types: once before a fork, not in every process."""
    for code in set(codes) & EDITABLE:
        if code == "BF16":
            bits = np.zeros(_SMALL + 1, np.uint16)
            between_bits(bits, bits)
        else:
            numbers = np.zeros(_SMALL + 1, np.float64 if code == "F64" else np.float32)
            _sums(numbers, numbers, False)


def _measure_in_range(before: "Tensor", after: "Tensor", *, step: bool) -> Change:
    if torch.float64 not in (before.dtype, after.dtype):
        change = _measure(before, after, torch.float32, step=step)
        if _is_exact(change):
            return change
    return _measure(before, after, torch.float64, step=step)


def _is_exact(change: Change) -> bool:
    """Whether no square, in float32, became infinite (from 1e19 on) or zero (below 1e-23)."""
    return change.finite and (change.distance > 0 or not change.changed)


def _measure(before: "Tensor", after: "Tensor", wide: "torch.dtype", *, step: bool) -> Change:
    if before.numel() <= _SMALL:
        return _few(before.to(wide).numpy(), after.to(wide).numpy(), step=step)
    pairs = [(before.reshape(-1), after.reshape(-1))]
    if before.dtype != wide or after.dtype != wide:  # in chunks, as the copies take memory
        pairs = list(zip(*(torch.split(flat, _CHUNK) for flat in pairs[0]), strict=True))
    sums = [0, 0.0, 0.0]
    for old, new in pairs:
        more = _sums(old.to(wide).numpy(), new.to(wide).numpy(), step)
        sums = [sum(pair) for pair in zip(sums, more, strict=True)]
    return Change(before.numel(), int(sums[0]), sums[1], sums[2])


def _few(before: NDArray[Any], after: NDArray[Any], *, step: bool) -> Change:
    """The change of so few entries that no compiled loop is loaded for it."""
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the sums
        delta = after if step else after - before
        distance, norm = (float(np.square(part, dtype=np.float64).sum()) for part in (delta, before))
    return Change(before.size, int(np.count_nonzero(delta)), distance, norm)


def _bits(tensor: "Tensor") -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = tensor.reshape(-1).view(torch.uint16).numpy()
    return bits


# Sums that may be taken in any order are several times as fast; they are for people to read.


@reassociated
def _sums(before: NDArray[Any], after: NDArray[Any], step: bool) -> tuple[int, float, float]:
    """How many entries changed, the squared distance, the squared norm before."""
    changed, distance, norm = 0, 0.0, 0.0
    for first in range(0, len(before), _TILE):
        old, new = before[first : first + _TILE], after[first : first + _TILE]
        count, apart, length = np.uint32(0), before[0] * 0, before[0] * 0
        for i in range(len(old)):
            delta = new[i] if step else new[i] - old[i]
            count += np.uint32(delta != 0)
            apart += delta * delta
            length += old[i] * old[i]
        changed, distance, norm = changed + int(count), distance + float(apart), norm + float(length)
    return changed, distance, norm


@reassociated
def _sums_of_bits(before: NDArray[np.uint16], after: NDArray[np.uint16]) -> tuple[int, float, float]:
    """The same of bfloat16."""
    changed, distance, norm = 0, 0.0, 0.0
    for first in range(0, len(before), _TILE):
        old, new = before[first : first + _TILE], after[first : first + _TILE]
        count, apart, length = np.uint32(0), np.float32(0), np.float32(0)
        for i in range(len(old)):
            start = np.uint32(np.uint32(old[i]) << np.uint32(16)).view(np.float32)
            delta = np.uint32(np.uint32(new[i]) << np.uint32(16)).view(np.float32) - start
            count += np.uint32(old[i] != new[i])
            apart += delta * delta
            length += start * start
        changed, distance, norm = changed + int(count), distance + float(apart), norm + float(length)
    return changed, distance, norm
