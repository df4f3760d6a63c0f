"""The k largest entries by magnitude, found exactly and without sorting.

The bits of a non-negative float order like an integer. So the k-th largest magnitude is found by
counting: a histogram of the leading 16 bits tells which bin it falls into, a histogram of the next 16
bits inside that bin narrows it further, until all bits are known. Tensors are seen one at a time, and
several together (a whole model) count like one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_DIGIT = 16
_RADIX = 1 << _DIGIT
_PIECE = 1 << 20  # entries at a time: what is made on the way stays in cache


@dataclass(frozen=True)
class Cut:
    """Keep what is larger than ``threshold``, and the first ``ties`` entries of exactly that magnitude."""

    threshold: float
    ties: int


def find_cuts(parts: Callable[[], Iterable[Tensor]], keep: int) -> list[Cut]:
    """For each task, the cut that keeps exactly ``keep`` entries of all parts together.

    Args:
        parts: gives the stacks (task, ...), all float32 or all float64, anew at each call.
        keep: from 1 to the number of entries of a task.

    Returns: a cut for each task; ``ties`` counts over all parts in their order.
    Cost: two passes over the parts in float32, four in float64.
    """
    first = next(iter(parts()))
    prefixes, ranks = [0] * len(first), [keep] * len(first)
    for shift in range(first.element_size() * 8 - _DIGIT, -1, -_DIGIT):
        counts = torch.zeros(len(first), _RADIX, dtype=torch.int64)
        for part in parts():
            for task, tensor in enumerate(part):
                counts[task] += _histogram(tensor, prefixes[task], shift)
        for task, above in enumerate(counts.flip(1).cumsum(1)):
            place = int(torch.searchsorted(above, ranks[task]))
            ranks[task] -= int(above[place - 1]) if place else 0
            prefixes[task] = (prefixes[task] << _DIGIT) | (_RADIX - 1 - place)
    bits = torch.tensor(prefixes, dtype=_integer(first.dtype))
    return [Cut(size, rank) for size, rank in zip(bits.view(first.dtype).tolist(), ranks, strict=True)]


def trim(tensor: Tensor, cut: Cut) -> tuple[Tensor, Cut]:
    """``tensor`` with everything below the cut set to zero, and the cut for what follows it.

    Of entries of exactly the threshold the first ``cut.ties`` are kept, in row-major order; the cut that is
    given back allows what is left of them, so that a tensor can be trimmed piece by piece.
    """
    size = tensor.abs()
    kept = size >= cut.threshold
    equal = size == cut.threshold
    found = int(equal.sum())
    if found > cut.ties:
        kept &= ~equal | (equal.reshape(-1).cumsum(0).reshape(equal.shape) <= cut.ties)
    return tensor * kept, Cut(cut.threshold, max(0, cut.ties - found))


def count_equal(tensor: Tensor, cut: Cut) -> int:
    """How many entries have exactly the magnitude of the cut."""
    return int((tensor.abs() == cut.threshold).sum())


def _histogram(tensor: Tensor, prefix: int, shift: int) -> Tensor:
    """Counts of the digit at ``shift`` among the entries whose higher digits are ``prefix``."""
    counts = torch.zeros(_RADIX, dtype=torch.int64)
    for piece in torch.split(tensor.reshape(-1), _PIECE):
        digits = piece.abs().view(_integer(tensor.dtype)) >> shift
        if shift + _DIGIT < tensor.element_size() * 8:
            digits = digits[(digits >> _DIGIT) == prefix] & (_RADIX - 1)
        counts += torch.bincount(digits, minlength=_RADIX)
    return counts


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32
