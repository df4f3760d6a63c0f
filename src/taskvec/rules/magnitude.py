"""The k-th largest entry, by magnitude or by value, found exactly and without sorting.

The bits of a non-negative float order like an integer, and those of any float after flipping some. So the
k-th largest entry is found by counting: a histogram of the leading 16 bits tells which bin it falls into, a
histogram of the next 16 bits inside that bin narrows it further, until all bits are known. Tensors are seen
one at a time, and several together (a whole model) count like one. A few entries are sorted, which is faster.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_DIGIT = 16
_RADIX = 1 << _DIGIT
_PIECE = 1 << 20  # entries at a time: what is made on the way stays in cache
SMALL = 1 << 14
"""Entries of a task up to which sorting is faster."""

Parts = Callable[[], Iterable[Tensor]]
"""Gives the stacks (task, ...), all float32 or all float64, anew at each call."""


@dataclass(frozen=True)
class Cut:
    """Keep what is larger than ``threshold``, and the first ``ties`` entries of exactly that magnitude.

    Attributes:
        threshold: the least magnitude that is kept.
        ties: how many of the ``equal`` entries are kept.
        equal: how many entries are of exactly this magnitude.
    """

    threshold: float
    ties: int
    equal: int


def share(entries: int, fraction: float) -> int:
    """How many entries a fraction of them is: the nearest number, at least one; none only for 0."""
    return min(entries, max(1, round(fraction * entries))) if fraction > 0 else 0


def find_cuts(parts: Parts, keep: int) -> list[Cut]:
    """For each task, the cut that keeps exactly ``keep`` entries of all parts together.

    Args:
        parts: the stacks (task, ...).
        keep: from 1 to the number of entries of a task.

    Returns: a cut for each task; ``ties`` counts over all parts in their order.
    Cost: two passes over the parts in float32, four in float64.
    """
    bits, ranks, equal = _select(parts, keep, _by_magnitude)
    return [Cut(*numbers) for numbers in zip(bits.tolist(), ranks, equal, strict=True)]


def kth_largest(parts: Parts, rank: int) -> Tensor:
    """For each task, the entry of this rank, (task,): the largest for 1, the least for their number.

    Cost: two passes over the parts in float32, four in float64.
    """
    return _select(parts, rank, _by_value)[0]


def trim(tensor: Tensor, cut: Cut) -> tuple[Tensor, Cut]:
    """``tensor`` with everything below the cut set to zero, and the cut for what follows it.

    Of entries of exactly the threshold the first ``cut.ties`` are kept, in row-major order; the cut that is
    given back allows what is left of them, so that a tensor can be trimmed piece by piece.
    """
    if cut.ties >= cut.equal:
        if not cut.threshold:
            return tensor.clone(), cut
        threshold = torch.tensor(cut.threshold, dtype=tensor.dtype)
        below = torch.nextafter(threshold, torch.zeros_like(threshold))
        return torch.nn.functional.hardshrink(tensor, below.item()), cut
    size = tensor.abs()
    kept = size >= cut.threshold
    equal = size == cut.threshold
    found = int(equal.sum())
    if found > cut.ties:
        kept &= ~equal | (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= cut.ties)
    return tensor * kept, replace(cut, ties=max(0, cut.ties - found))


def count_equal(tensor: Tensor, cut: Cut) -> int:
    """How many entries have exactly the magnitude of the cut."""
    return int((tensor.abs() == cut.threshold).sum())


def _select(parts: Parts, rank: int, key: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[int], list[int]]:
    """The entry of this rank for each task, its rank among the entries equal to it, and their number."""
    small = _few(parts)
    if small is not None:
        keys = key(small)
        value = keys.sort(dim=1, descending=True).values[:, rank - 1]
        above = (keys > value[:, None]).sum(1)
        equal = (keys == value[:, None]).sum(1)
        return _ordered(value).view(small.dtype), [rank - int(more) for more in above], equal.tolist()
    first = next(iter(parts()))
    prefixes, ranks, equal_to = [0] * len(first), [rank] * len(first), [0] * len(first)
    width = first.element_size() * 8
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        leading = shift == width - _DIGIT
        counts = torch.zeros(len(first), _RADIX, dtype=torch.int64)
        for part in parts():
            for task, tensor in enumerate(part):
                counts[task] += _histogram(tensor, key, shift, None if leading else prefixes[task])
        for task, above in enumerate(counts.flip(1).cumsum(1)):
            place = int(torch.searchsorted(above, ranks[task]))
            ranks[task] -= int(above[place - 1]) if place else 0
            digit = _RADIX - 1 - place
            equal_to[task] = int(counts[task, digit])
            prefixes[task] = digit - _RADIX // 2 if leading else (prefixes[task] << _DIGIT) | digit
    found = torch.tensor(prefixes, dtype=_integer(first.dtype))
    return _ordered(found).view(first.dtype), ranks, equal_to


def _few(parts: Parts) -> Tensor | None:
    """All entries, (task, n), if there are but few."""
    gathered, entries = [], 0
    for part in parts():
        entries += part[0].numel()
        if entries > SMALL:
            return None
        gathered.append(part.reshape(len(part), -1))
    return torch.cat(gathered, dim=1)


def _histogram(tensor: Tensor, key: Callable[[Tensor], Tensor], shift: int, prefix: int | None) -> Tensor:
    """Counts of the digit at ``shift`` among the entries whose higher digits are ``prefix``."""
    counts = torch.zeros(_RADIX, dtype=torch.int64)
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        digits = key(piece) >> shift
        if prefix is None:
            digits += _RADIX // 2  # the sign: negative keys come first
        else:
            digits = digits[(digits >> _DIGIT) == prefix] & (_RADIX - 1)
        counts += torch.bincount(digits, minlength=_RADIX)
    return counts


def _by_magnitude(tensor: Tensor) -> Tensor:
    return tensor.abs().view(_integer(tensor.dtype))


def _by_value(tensor: Tensor) -> Tensor:
    return _ordered(tensor.contiguous().view(_integer(tensor.dtype)))


def _ordered(bits: Tensor) -> Tensor:
    """Float bits as integers in the order of the floats, and back: non-negative ones stay as they are."""
    return bits ^ ((bits >> (bits.element_size() * 8 - 1)) & torch.iinfo(bits.dtype).max)


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32
