"""The k-th largest entry, by magnitude or by value, found exactly, in few passes and without sorting.

The bits of a non-negative float order like an integer, and those of any float after flipping some. With a
sample at hand, one pass counts what is above a bracket around the wanted entry and gathers what is inside;
the entry is then found among these few. Without one, or where the bracket missed, a histogram of the leading
16 bits tells which bin the entry falls into, and histograms of the next bits narrow it further. Tensors are
seen a piece at a time, and several together (a whole model) count like one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from sys import maxsize
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.rules.rule import Stacks

_DIGIT = 16
_RADIX = 1 << _DIGIT
_PIECE = 1 << 16  # entries at a time: what is made on the way stays in cache
SMALL = 1 << 14
"""Entries of a task up to which all are looked at at once."""

SAMPLE = 1 << 16
"""Entries of a sample, about."""

_MOST = 1 << 23  # entries of a task that are gathered; where more lie inside a bracket, all are counted


Ranks = int | Sequence[int]
"""A number of entries: the same for all tasks, or one for each."""

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
        until: the index of the first of them that is not, if it is known.
    """

    threshold: float
    ties: int
    equal: int
    until: int | None = None


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
        blocks: each gives pieces (task, ...), all float32 or all float64, anew at each call.
        number: entries of a task in all blocks together.
        sample: some entries of each task (task, n), spread over all of them; saves a pass.
    """

    blocks: Sequence[Callable[[], Iterable[Tensor]]]
    number: int
    sample: Tensor | None = None

    @classmethod
    def of(cls, stacks: Stacks, name: str, made: Made = lambda stack, context: stack) -> "Entries":
        """The entries of one tensor, or what is ``made`` of its pieces and their context."""

        def block(rows: slice | None) -> Iterator[Tensor]:
            return (made(*piece) for piece in stacks.pieces(name, rows))

        number = stacks.numel(name)
        sample = None
        if number > SMALL:
            rows = [made(*piece) for piece in stacks.sample(name, 4 * SAMPLE)]
            flat = torch.cat([stack.reshape(len(stack), -1) for stack in rows], dim=1)
            sample = flat[:, :: max(1, flat.shape[1] // SAMPLE)]
        return cls([partial(block, rows) for rows in stacks.blocks(name)], number, sample)

    @classmethod
    def all_of(cls, stacks: Stacks) -> "Entries":
        """The entries of every tensor together."""
        blocks = [e for name in stacks.changed for e in cls._unsampled(stacks, name)]
        return cls(blocks, sum(map(stacks.numel, stacks.changed)))

    @staticmethod
    def _unsampled(stacks: Stacks, name: str) -> list[Callable[[], Iterable[Tensor]]]:
        def block(rows: slice | None) -> Iterator[Tensor]:
            return (stack for stack, _ in stacks.pieces(name, rows))

        return [partial(block, rows) for rows in stacks.blocks(name)]

    @classmethod
    def whole(cls, stack: Tensor) -> "Entries":
        """The entries of one stack (task, ...)."""
        number = stack[0].numel()
        flat = stack.reshape(len(stack), -1)
        sample = flat[:, :: max(1, number // SAMPLE)] if number > SMALL else None
        return cls([lambda: [stack]], number, sample)

    def changed(self, made: Callable[[Tensor], Tensor]) -> "Entries":
        """What is made of each piece (task, ...), entry by entry."""
        blocks = [partial(_mapped, made, block) for block in self.blocks]
        return Entries(blocks, self.number, None if self.sample is None else made(self.sample))

    def parts(self) -> Iterator[Tensor]:
        """All pieces."""
        return (part for block in self.blocks for part in block())


def _mapped(made: Callable[[Tensor], Tensor], block: Callable[[], Iterable[Tensor]]) -> Iterable[Tensor]:
    return map(made, block())


def cuts_of(stacks: Stacks, name: str, keep: Ranks) -> list[Cut]:
    """For each task, the cut that keeps exactly ``keep`` entries of one tensor.

    Args:
        keep: from 1 to the number of entries of the tensor.

    Cost: a pass over the tensor, and another where not all of several equal entries are kept.
    """
    if all(number == stacks.numel(name) for number in ([keep] if isinstance(keep, int) else keep)):
        return [Cut(0.0)] * stacks.tasks(name)
    entries = Entries.of(stacks, name)
    found = find(entries, keep)
    return located(entries, found, [one.ties for one in found])


def located(entries: Entries, found: Sequence[Found], ties: Sequence[int]) -> list[Cut]:
    """Cuts for a tensor that keep so many ``ties`` of its entries that are equal to the thresholds."""
    if all(number >= one.equal for number, one in zip(ties, found, strict=True)):
        return [Cut(one.threshold) for one in found]
    if all(n == one.ties and one.until is not None for n, one in zip(ties, found, strict=True)):
        return [Cut(one.threshold, one.until or 0) for one in found]
    until, left, first = [maxsize] * len(found), list(ties), 0
    for part in entries.parts():
        for task, delta in enumerate(part):
            if until[task] < maxsize:
                continue
            equal = np.flatnonzero((delta.abs() == found[task].threshold).reshape(-1).numpy())
            if len(equal) > left[task]:
                until[task] = first + int(equal[left[task]])
            left[task] -= len(equal)
        first += part[0].numel()
        if all(end < maxsize for end in until):
            break
    return [Cut(one.threshold, end) for one, end in zip(found, until, strict=True)]


def trim(tensor: Tensor, cut: Cut, first: int = 0, out: Tensor | None = None) -> Tensor:
    """``tensor`` with everything that the cut does not keep set to zero.

    Args:
        tensor: (*shape), entries of a tensor in row-major order.
        first: the index in that tensor of the first of them.
        out: where the result goes; may be ``tensor``.
    """
    below = _below(cut.threshold, tensor.dtype)
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


@cache
def _below(threshold: float, dtype: torch.dtype) -> float:
    """The next smaller float."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    return float(np.nextafter(kind(threshold), kind(0)))


def _shrunk(tensor: Tensor, bound: float, out: Tensor | None) -> Tensor:
    """Zero where the magnitude is at most ``bound``."""
    if out is None:
        return torch.nn.functional.hardshrink(tensor, bound)
    return torch.hardshrink(tensor, bound, out=out)


def find(entries: Entries, keep: Ranks) -> list[Found]:
    """The ``keep``-th largest magnitude of each task.

    Cost: a pass over the entries with a good sample, else two in float32 and four in float64.
    """
    dtype, chosen = _select(entries, keep, _by_magnitude)
    values = _numbers([one.key for one in chosen], dtype).tolist()
    return [Found(value, *one[1:]) for value, one in zip(values, chosen, strict=True)]


def kth_largest(entries: Entries, rank: Ranks) -> Tensor:
    """For each task, the entry of this rank, (task,): the largest for 1, the least for their number.

    Cost: as for ``find``.
    """
    dtype, chosen = _select(entries, rank, _by_value)
    return _numbers([one.key for one in chosen], dtype)


Keys = NDArray[np.signedinteger[Any]]
KeyOf = Callable[[Tensor], Tensor]


class _Chosen(NamedTuple):
    """The entry of a rank, by its key: its rank among those equal to it, their number, and the index of the
    first of them that has a larger rank, if it is known."""

    key: int
    ties: int
    equal: int
    until: int | None = None


def _select(entries: Entries, rank: Ranks, key: KeyOf) -> tuple[torch.dtype, list[_Chosen]]:
    """The entry of this rank for each task."""
    if entries.number <= SMALL:
        gathered = torch.cat([part.reshape(len(part), -1) for part in entries.parts()], dim=1)
        ranks = _ranks(rank, len(gathered))
        chosen = [_among(key(one).numpy(), own) for one, own in zip(gathered, ranks, strict=True)]
        return gathered.dtype, chosen
    first = next(iter(entries.parts())) if entries.sample is None else entries.sample
    ranks = _ranks(rank, len(first))
    return first.dtype, _bracketed(entries, ranks, key) or _counted(entries, ranks, key)


def _ranks(rank: Ranks, tasks: int) -> Sequence[int]:
    return [rank] * tasks if isinstance(rank, int) else rank


def _among(keys: Keys, rank: int) -> _Chosen:
    """The one of this rank."""
    place = len(keys) - rank
    value = np.partition(keys, place)[place]
    ties = rank - int(np.count_nonzero(keys > value))
    equal = np.flatnonzero(keys == value)
    return _Chosen(int(value), ties, len(equal), int(equal[ties]) if ties < len(equal) else None)


def _bracketed(entries: Entries, ranks: Sequence[int], key: KeyOf) -> list[_Chosen]:
    """In one pass: count what is above a bracket and gather what is inside it.

    Empty if there is no sample, or if the wanted entry is in none of the brackets of some task.
    """
    if entries.sample is None:
        return []
    brackets = [
        _bracket(key(one).numpy(), rank / entries.number)
        for one, rank in zip(entries.sample, ranks, strict=True)
    ]
    inside: list[list[list[Keys]]] = [[[] for _ in entries.blocks] for _ in brackets]
    wanted, gathered = list(ranks), [0] * len(brackets)
    starts = [0]
    for place, block in enumerate(entries.blocks):
        starts.append(starts[-1])
        for part in block():
            starts[-1] += part[0].numel()
            for task, (low, high) in enumerate(brackets):
                for piece in torch.split(part[task].reshape(-1), _PIECE):
                    keys = key(piece).numpy()
                    mask = keys > high
                    wanted[task] -= int(np.count_nonzero(mask))
                    mask ^= keys >= low
                    inside[task][place].append(keys[mask])
                    gathered[task] += len(inside[task][place][-1])
        if max(gathered) > _MOST:
            return []
    if any(not 0 < left <= number for left, number in zip(wanted, gathered, strict=True)):
        return []
    chosen = []
    for task, (blocks, left) in enumerate(zip(inside, wanted, strict=True)):
        one = _among(np.concatenate([keys for block in blocks for keys in block]), left)
        equal = [sum(int(np.count_nonzero(keys == one.key)) for keys in block) for block in blocks]
        until = _end(entries, equal, starts, task, one, key) if one.ties < one.equal else None
        chosen.append(one._replace(until=until))
    return chosen


def _end(
    entries: Entries, equal: Sequence[int], starts: Sequence[int], task: int, one: _Chosen, key: KeyOf
) -> int:
    """The index of the first entry that equals the chosen one but has a larger rank; reads one block.

    Args:
        equal: how many entries of each block are equal to the chosen one.
        starts: the index of the first entry of each block.
    """
    totals = np.cumsum(equal)
    place = int(np.searchsorted(totals, one.ties, side="right"))
    left, first = one.ties - int(totals[place] - equal[place]), starts[place]
    for part in entries.blocks[place]():
        found = np.flatnonzero(key(part[task].reshape(-1)).numpy() == one.key)
        if len(found) > left:
            return first + int(found[left])
        left, first = left - len(found), first + part[task].numel()
    raise AssertionError("a block was read twice and was not the same")


def _bracket(keys: Keys, fraction: float) -> tuple[int, int]:
    """The keys between which the entry that so large a fraction exceeds lies, most likely."""
    number = len(keys)
    slack = 0.004 + 4 * (fraction * (1 - fraction) / number) ** 0.5
    least, most = np.iinfo(keys.dtype).min, np.iinfo(keys.dtype).max
    first, last = int((1 - fraction - slack) * number), int((1 - fraction + slack) * number) + 1
    inner = np.partition(keys, sorted({max(first, 0), min(last, number - 1)}))
    return int(inner[first]) if first > 0 else least, int(inner[last]) if last < number else most


def _counted(entries: Entries, wanted: Sequence[int], key: KeyOf) -> list[_Chosen]:
    """By histograms, one pass for every 16 bits."""
    first = next(iter(entries.parts()))
    prefixes, ranks, equal = [0] * len(first), list(wanted), [0] * len(first)
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
    return [_Chosen(*numbers) for numbers in zip(prefixes, ranks, equal, strict=True)]


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


def _numbers(keys: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The floats that have these keys."""
    return _ordered(torch.tensor(keys, dtype=_integer(dtype))).view(dtype)


def _by_magnitude(tensor: Tensor) -> Tensor:
    bits = tensor.view(_integer(tensor.dtype))
    return bits & torch.iinfo(bits.dtype).max


def _by_value(tensor: Tensor) -> Tensor:
    return _ordered(tensor.contiguous().view(_integer(tensor.dtype)))


def _ordered(bits: Tensor) -> Tensor:
    """Float bits as integers in the order of the floats, and back: non-negative ones stay as they are."""
    return bits ^ ((bits >> (bits.element_size() * 8 - 1)) & torch.iinfo(bits.dtype).max)


def _integer(dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if dtype == torch.float64 else torch.int32
