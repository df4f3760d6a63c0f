"""The k-th largest entry, by magnitude or by value, found exactly, in few passes and without sorting.

The bits of a non-negative float order like an integer, and those of any float after flipping some. With a
sample at hand, one pass counts what is above a bracket around the wanted entry and gathers what is inside;
the entry is then found among these few. Without one, or where the bracket missed, a histogram of the leading
16 bits tells which bin the entry falls into, and histograms of the next bits narrow it further. Tensors are
seen a piece at a time, and several together (a whole model) count like one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import maxsize
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.rules.rule import Stacks

_DIGIT = 16
_RADIX = 1 << _DIGIT
_PIECE = 1 << 18  # entries at a time: what is made on the way stays in cache
SMALL = 1 << 14
"""Entries of a task up to which all are looked at at once."""

SAMPLE = 1 << 15
"""Entries of a sample, about."""


Made = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""A piece (task, *rows) and its context -> a stack (n, *rows)."""


@dataclass(frozen=True)
class Cut:
    """Keep what is larger than ``threshold``, and the entries of exactly that magnitude before ``until``.

    Attributes:
        threshold: the least magnitude that is kept.
        until: the row-major index in the tensor from which on entries equal to the threshold go.
    """

    threshold: float
    until: int = maxsize


@dataclass(frozen=True)
class Found:
    """The k-th largest magnitude of one task.

    Attributes:
        threshold: that magnitude.
        ties: how many of the entries of exactly this magnitude are among the k largest.
        equal: how many there are.
    """

    threshold: float
    ties: int
    equal: int


def share(entries: int, fraction: float) -> int:
    """How many entries a fraction of them is: the nearest number, at least one; none only for 0."""
    return min(entries, max(1, round(fraction * entries))) if fraction > 0 else 0


def count_equal(tensor: Tensor, found: Found) -> int:
    """How many entries have exactly the magnitude that was found."""
    return int(np.count_nonzero((tensor.abs() == found.threshold).numpy()))


@dataclass(frozen=True)
class Entries:
    """What is selected from.

    Attributes:
        parts: gives the stacks (task, ...), all float32 or all float64, anew at each call.
        number: entries of a task in all parts together.
        sample: some entries of each task (task, n), spread over all of them; saves a pass.
    """

    parts: Callable[[], Iterable[Tensor]]
    number: int
    sample: Tensor | None = None

    @classmethod
    def of(cls, stacks: Stacks, name: str, made: Made = lambda stack, context: stack) -> "Entries":
        """The entries of one tensor, or what is ``made`` of its pieces and their context."""
        number = stacks.numel(name)
        sample = None
        if number > SMALL:
            rows = [made(*piece) for piece in stacks.sample(name, SAMPLE)]
            flat = torch.cat([stack.reshape(len(stack), -1) for stack in rows], dim=1)
            sample = flat[:, :: max(1, flat.shape[1] // SAMPLE)]
        return cls(lambda: (made(*piece) for piece in stacks.of(name)), number, sample)

    def changed(self, made: Callable[[Tensor], Tensor]) -> "Entries":
        """What is made of each piece (task, ...), entry by entry."""
        sample = None if self.sample is None else made(self.sample)
        return Entries(lambda: map(made, self.parts()), self.number, sample)

    @classmethod
    def whole(cls, stack: Tensor) -> "Entries":
        """The entries of one stack (task, ...)."""
        number = stack[0].numel()
        flat = stack.reshape(len(stack), -1)
        return cls(lambda: [stack], number, flat[:, :: max(1, number // SAMPLE)] if number > SMALL else None)


def cuts_of(stacks: Stacks, name: str, keep: int) -> list[Cut]:
    """For each task, the cut that keeps exactly ``keep`` entries of one tensor.

    Args:
        keep: from 1 to the number of entries of the tensor.

    Cost: a pass over the tensor, and another where not all of several equal entries are kept.
    """
    found = find(Entries.of(stacks, name), keep)
    return located((stack for stack, _ in stacks.of(name)), found, [one.ties for one in found])


def located(parts: Iterable[Tensor], found: Sequence[Found], ties: Sequence[int]) -> list[Cut]:
    """Cuts for a tensor that keep so many ``ties`` of the entries that are equal to the thresholds."""
    if all(number >= one.equal for number, one in zip(ties, found, strict=True)):
        return [Cut(one.threshold) for one in found]
    until, left, first = [maxsize] * len(found), list(ties), 0
    for part in parts:
        for task, delta in enumerate(part):
            if until[task] < maxsize:
                continue
            equal = np.flatnonzero((delta.abs() == found[task].threshold).reshape(-1).numpy())
            if len(equal) > left[task]:
                until[task] = first + int(equal[left[task]])
            left[task] -= len(equal)
        first += part[0].numel()
    return [Cut(one.threshold, end) for one, end in zip(found, until, strict=True)]


def trim(tensor: Tensor, cut: Cut, first: int = 0, out: Tensor | None = None) -> Tensor:
    """``tensor`` with everything that the cut does not keep set to zero.

    Args:
        tensor: (*shape), entries of a tensor in row-major order.
        first: the index in that tensor of the first of them.
        out: where the result goes; may be ``tensor``.
    """
    threshold = torch.tensor(cut.threshold, dtype=tensor.dtype)
    below = torch.nextafter(threshold, torch.zeros_like(threshold)).item()
    last = first + tensor.numel()
    if cut.until >= last:
        if not cut.threshold:
            return tensor.clone() if out is None else out.copy_(tensor)
        return _shrunk(tensor, below, out)
    if cut.until <= first:
        return _shrunk(tensor, cut.threshold, out)
    made = torch.empty_like(tensor, memory_format=torch.contiguous_format) if out is None else out
    flat, target, split = tensor.reshape(-1), made.reshape(-1), cut.until - first
    trim(flat[:split], Cut(cut.threshold), out=target[:split])
    trim(flat[split:], Cut(cut.threshold, 0), out=target[split:])
    return target.reshape(tensor.shape)


def _shrunk(tensor: Tensor, bound: float, out: Tensor | None) -> Tensor:
    """Zero where the magnitude is at most ``bound``."""
    if out is None:
        return torch.nn.functional.hardshrink(tensor, bound)
    return torch.hardshrink(tensor, bound, out=out)


def find(entries: Entries, keep: int) -> list[Found]:
    """The ``keep``-th largest magnitude of each task.

    Cost: a pass over the entries with a good sample, else two in float32 and four in float64.
    """
    keys, ranks, equal = _select(entries, keep, _by_magnitude)
    return [Found(*numbers) for numbers in zip(keys.tolist(), ranks, equal, strict=True)]


def kth_largest(entries: Entries, rank: int) -> Tensor:
    """For each task, the entry of this rank, (task,): the largest for 1, the least for their number.

    Cost: as for ``find``.
    """
    return _select(entries, rank, _by_value)[0]


Keys = NDArray[np.signedinteger[Any]]
KeyOf = Callable[[Tensor], Tensor]


def _select(entries: Entries, rank: int, key: KeyOf) -> tuple[Tensor, list[int], list[int]]:
    """The entry of this rank for each task, its rank among the entries equal to it, and their number."""
    if entries.number <= SMALL:
        gathered = torch.cat([part.reshape(len(part), -1) for part in entries.parts()], dim=1)
        dtype, chosen = gathered.dtype, [_among(key(one).numpy(), rank) for one in gathered]
    else:
        dtype = next(iter(entries.parts())).dtype
        chosen = _bracketed(entries, rank, key) or _counted(entries, rank, key)
    keys = torch.tensor([value for value, _, _ in chosen], dtype=_integer(dtype))
    return _ordered(keys).view(dtype), [among for _, among, _ in chosen], [equal for _, _, equal in chosen]


def _among(keys: Keys, rank: int) -> tuple[int, int, int]:
    """The key of this rank, its rank among its equals, and their number."""
    place = len(keys) - rank
    value = np.partition(keys, place)[place]
    return int(value), rank - int(np.count_nonzero(keys > value)), int(np.count_nonzero(keys == value))


def _bracketed(entries: Entries, rank: int, key: KeyOf) -> list[tuple[int, int, int]]:
    """In one pass: count what is above a bracket and gather what is inside it.

    Empty if there is no sample, or if the wanted entry is in none of the brackets of some task.
    """
    if entries.sample is None:
        return []
    brackets = [_bracket(key(one).numpy(), rank / entries.number) for one in entries.sample]
    above = [0] * len(brackets)
    inside: list[list[Keys]] = [[] for _ in brackets]
    for part in entries.parts():
        for task, (low, high) in enumerate(brackets):
            for piece in torch.split(part[task].reshape(-1), _PIECE):
                keys = key(piece).numpy()
                over = keys > high
                above[task] += int(np.count_nonzero(over))
                over ^= keys >= low
                inside[task].append(keys[np.flatnonzero(over)])
    gathered = [np.concatenate(pieces) for pieces in inside]
    wanted = [rank - number for number in above]
    if any(not 0 < left <= len(keys) for left, keys in zip(wanted, gathered, strict=True)):
        return []
    return [_among(keys, left) for left, keys in zip(wanted, gathered, strict=True)]


def _bracket(keys: Keys, fraction: float) -> tuple[int, int]:
    """The keys between which the entry that so large a fraction exceeds lies, most likely."""
    number = len(keys)
    slack = 0.01 + 4 * (fraction * (1 - fraction) / number) ** 0.5
    least, most = np.iinfo(keys.dtype).min, np.iinfo(keys.dtype).max
    first, last = int((1 - fraction - slack) * number), int((1 - fraction + slack) * number) + 1
    inner = np.partition(keys, sorted({max(first, 0), min(last, number - 1)}))
    return int(inner[first]) if first > 0 else least, int(inner[last]) if last < number else most


def _counted(entries: Entries, rank: int, key: KeyOf) -> list[tuple[int, int, int]]:
    """By histograms, one pass for every 16 bits."""
    first = next(iter(entries.parts()))
    prefixes, ranks, equal = [0] * len(first), [rank] * len(first), [0] * len(first)
    width = first.element_size() * 8
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        leading = shift == width - _DIGIT
        counts = torch.zeros(len(first), _RADIX, dtype=torch.int64)
        for part in entries.parts():
            for task, tensor in enumerate(part):
                counts[task] += _histogram(tensor, key, shift, None if leading else prefixes[task])
        for task, above in enumerate(counts.flip(1).cumsum(1)):
            place = int(torch.searchsorted(above, ranks[task]))
            ranks[task] -= int(above[place - 1]) if place else 0
            digit = _RADIX - 1 - place
            equal[task] = int(counts[task, digit])
            prefixes[task] = digit - _RADIX // 2 if leading else (prefixes[task] << _DIGIT) | digit
    return list(zip(prefixes, ranks, equal, strict=True))


def _histogram(tensor: Tensor, key: KeyOf, shift: int, prefix: int | None) -> Tensor:
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
