"""The k-th largest entry, by magnitude or by value, found exactly, in few passes and without sorting.

The bits of a non-negative float order like an integer, and those of any float after flipping some. With a
sample at hand, one pass counts what is above a bracket around the wanted entry and gathers what is inside;
the entry is then found among these few. Without one, or where the bracket missed or holds too much, a
histogram of the leading 16 bits tells which bin the entry falls into, and histograms of the next bits narrow
it further. Tensors are seen a piece at a time, and several together (a whole model) count like one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.memory import room
from taskvec.rules.pairs import Bits, Deltas, entries_of, stacked
from taskvec.rules.rule import Stacks

_DIGIT = 16  # bits: two passes do for float32, and the counts still fit into the second cache
_RADIX = 1 << _DIGIT
_TILE = 1 << 11  # entries at a time: what is made on the way stays in the first cache
SMALL = 1 << 14
"""Entries of a task up to which all are looked at at once."""

SAMPLE = 1 << 16
"""Entries of a sample, about."""

_MOST = 1 << 21  # entries of a task that are gathered; where more may be inside a bracket, all are counted

_PIECE = 1 << 20  # entries that are looked at at once

_GATHERED = 20  # bytes of an entry that is gathered: key and place, and the copy that is searched

Ranks = int | Sequence[int]
"""A number of entries: the same for all tasks, or one for each."""

Made = Callable[[Any, Mapping[str, Any]], Deltas]
"""A piece (task, *rows) and its context -> a stack (n, *rows)."""


class Ranked(NamedTuple):
    """The entry of a rank, of one task.

    Attributes:
        threshold: the entry; while it is searched, its key.
        ties: how many of the entries that equal it are of this rank or a smaller one.
        equal: how many there are.
        until: the index of the first of them that is of a larger rank, if it is known.
    """

    threshold: float
    ties: int
    equal: int
    until: int | None = None


@dataclass(frozen=True)
class Entries:
    """What is selected from.

    Attributes:
        parts: gives pieces (task, ...), all float32 or all float64, tensors or ``Pairs``, anew at each call.
        number: entries of a task in all pieces together.
        sample: some entries of each task (task, n), spread over all of them; saves a pass.
    """

    parts: Callable[[], Iterable[Any]]
    number: int
    sample: Tensor | None = None

    @classmethod
    def of_tensor(cls, stacks: Stacks, name: str, made: Made = lambda stack, context: stack) -> "Entries":
        """The entries of one tensor, or what is ``made`` of its pieces and their context."""
        number = stacks.numel(name)
        sample = None
        if number > SMALL:
            rows = [stacked(made(*piece)) for piece in stacks.sample(name, 4 * SAMPLE)]
            flat = torch.cat([stack.reshape(len(stack), -1) for stack in rows], dim=1)
            sample = flat[:, :: max(1, flat.shape[1] // SAMPLE)]
        return cls(lambda: (made(*piece) for piece in stacks.pieces_of(name)), number, sample)

    @classmethod
    def of_model(cls, stacks: Stacks) -> "Entries":
        """The entries of every tensor together."""
        return cls(lambda: (stack for _, stack in stacks), sum(map(stacks.numel, stacks.changed)))

    def changed(self, made: Callable[[Tensor], Tensor]) -> "Entries":
        """What is made of each piece (task, ...), entry by entry."""
        sample = None if self.sample is None else made(self.sample)
        return Entries(lambda: map(made, self.parts()), self.number, sample)


def find(entries: Entries, keep: Ranks) -> list[Ranked]:
    """The ``keep``-th largest magnitude of each task.

    Cost: a pass over the entries with a good sample, else two in float32 and four in float64.
    """
    dtype, ranked = _select(entries, keep, magnitude=True)
    values = _numbers(ranked, dtype).tolist()
    return [each._replace(threshold=value) for each, value in zip(ranked, values, strict=True)]


def kth_largest(entries: Entries, rank: Ranks) -> Tensor:
    """For each task, the entry of this rank, (task,): the largest for 1, the least for their number.

    Cost: as for ``find``.
    """
    dtype, ranked = _select(entries, rank, magnitude=False)
    return _numbers(ranked, dtype)


Keys = NDArray[np.signedinteger[Any]]


def _select(entries: Entries, rank: Ranks, *, magnitude: bool) -> tuple[torch.dtype, list[Ranked]]:
    """The entry of this rank for each task."""
    if entries.number <= SMALL:
        gathered = torch.cat([stacked(part).reshape(len(part), -1) for part in entries.parts()], dim=1)
        ranks = _ranks(rank, len(gathered))
        keys = (_keys(entries_of_task, magnitude) for entries_of_task in gathered)
        return gathered.dtype, list(map(_among, keys, ranks))
    first = next(iter(entries.parts())) if entries.sample is None else entries.sample
    ranks = _ranks(rank, len(first))
    return first.dtype, _bracketed(entries, ranks, magnitude) or _counted(entries, ranks, magnitude)


def _ranks(rank: Ranks, tasks: int) -> Sequence[int]:
    return [rank] * tasks if isinstance(rank, int) else rank


def _among(keys: Keys, rank: int) -> Ranked:
    """The one of this rank."""
    place = len(keys) - rank
    value = np.partition(keys, place)[place]
    ties = rank - int(np.count_nonzero(keys > value))
    equal = np.flatnonzero(keys == value)
    return Ranked(int(value), ties, len(equal), int(equal[ties]) if ties < len(equal) else None)


def _bracketed(entries: Entries, ranks: Sequence[int], magnitude: bool) -> list[Ranked]:
    """In one pass: count what is above a bracket and gather what is inside it.

    Empty if there is no sample, if too much is inside, or if the wanted entry of some task is not.
    """
    if entries.sample is None:
        return []
    samples = [_keys(of_task, magnitude) for of_task in entries.sample]
    brackets = [_bracket(keys, rank / entries.number) for keys, rank in zip(samples, ranks, strict=True)]
    shares = [
        np.mean((low <= keys) & (keys <= high)) for keys, (low, high) in zip(samples, brackets, strict=True)
    ]
    most = max(shares) * entries.number
    if most > _MOST or most * len(shares) * _GATHERED > room():
        return []
    # One buffer for each task, as many small arrays between large ones would let memory grow.
    size = min(entries.number, int(1.5 * max(shares) * entries.number) + 2 * _PIECE) + 1
    inside = [(np.empty(size, keys.dtype), np.empty(size, np.int64)) for keys in samples]
    wanted, gathered, first = list(ranks), [0] * len(brackets), 0
    for part in entries.parts():
        for task, bracket in enumerate(brackets):
            for place, bits, starts in _pieces(part, task, bracket.dtype):
                if gathered[task] + len(bits) >= size:
                    return []
                args = magnitude, bracket, first + place, gathered[task]
                above, gathered[task] = _split(bits, starts, *args, *inside[task])
                wanted[task] -= above
        first += prod(part.shape[1:])
    if any(not 0 < left <= number for left, number in zip(wanted, gathered, strict=True)):
        return []
    ranked = [
        _among(keys[:number], left) for (keys, _), number, left in zip(inside, gathered, wanted, strict=True)
    ]
    return [
        each if each.until is None else each._replace(until=int(places[each.until]))
        for each, (_, places) in zip(ranked, inside, strict=True)
    ]


def _pieces(part: Deltas, task: int, kind: np.dtype[Any]) -> Iterator[tuple[int, NDArray[Any], Bits | None]]:
    """Index and bits of some entries of one task after the other, or bits of what they are differences of."""
    entries, starts = entries_of(part, task)
    for first in range(0, len(entries), _PIECE):
        some = slice(first, first + _PIECE)
        if starts is None:
            yield first, entries[some].view(kind), None
        else:
            yield first, entries[some], starts[some]


@compiled
def _split(
    bits: NDArray[np.integer[Any]],
    starts: Bits | None,
    magnitude: bool,
    bracket: Keys,
    first: int,
    number: int,
    inside: Keys,
    places: NDArray[np.int64],
) -> tuple[Any, Any]:
    """How many keys are above a bracket, and the number of those inside it, ends included.

    Args:
        bits: of floats; or of bfloat16 weights, if the keys are those of their differences from ``starts``.
        first: the index of the first entry.
        number: of keys inside so far; more, and their indices, are written behind them into ``inside`` and
            ``places``, which have room for one more than all.
    """
    kind = bracket.dtype.type
    least, most, largest = bracket[0], bracket[1], kind(np.iinfo(bracket.dtype).max)
    keys, flags = np.empty(_TILE, bracket.dtype), np.zeros(_TILE, np.uint8)
    above, end = np.int64(0), np.uint64(number)
    for start in range(0, len(bits), _TILE):
        tile, over = bits[start : start + _TILE], kind(0)
        begun = tile if starts is None else starts[start : start + _TILE]
        for i in range(len(tile)):
            if starts is None:
                key = tile[i]
            else:
                after, before = np.uint32(np.uint32(tile[i]) << 16), np.uint32(np.uint32(begun[i]) << 16)
                key = np.float32(after.view(np.float32) - before.view(np.float32)).view(np.int32)
            keys[i] = key & largest if magnitude or key >= 0 else key ^ largest
        for i in range(len(tile)):
            over += kind(keys[i] > most)
        above += over
        for i in range(len(tile)):
            flags[i] = (least <= keys[i]) & (keys[i] <= most)
        flags[len(tile) :] = 0
        eights = flags.view(np.uint64)
        for eight in range(len(eights)):
            for i in range(8 * eight, 8 * eight + 8 if eights[eight] else 0):
                # Without a branch: the next one takes the place of one that is outside.
                inside[end], places[end] = keys[i], first + start + i
                end += np.uint64(flags[i])
    return above, end


def _bracket(keys: Keys, fraction: float) -> Keys:
    """The keys between which the entry that so large a fraction exceeds lies, most likely."""
    number = len(keys)
    # Four deviations of a share in a random sample, and more, as rows lie together and are alike.
    slack = 0.004 + 4 * (fraction * (1 - fraction) / number) ** 0.5
    least, most = np.iinfo(keys.dtype).min, np.iinfo(keys.dtype).max
    first, last = int((1 - fraction - slack) * number), int((1 - fraction + slack) * number) + 1
    inner = np.partition(keys, sorted({max(first, 0), min(last, number - 1)}))
    ends = inner[first] if first > 0 else least, inner[last] if last < number else most
    return np.array(ends, keys.dtype)


def _counted(entries: Entries, wanted: Sequence[int], magnitude: bool) -> list[Ranked]:
    """By histograms, one pass for every 16 bits."""
    first = next(iter(entries.parts()))
    prefixes, ranks, equal = [0] * len(first), list(wanted), [0] * len(first)
    width = first.dtype.itemsize * 8
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        leading = shift == width - _DIGIT
        counts = np.zeros((len(first), _RADIX), np.int64)
        for part in entries.parts():
            for task, tensor in enumerate(part):
                _count(_keys(tensor, magnitude), shift, None if leading else prefixes[task], counts[task])
        for task, above in enumerate(counts[:, ::-1].cumsum(1)):
            place = int(np.searchsorted(above, ranks[task]))
            ranks[task] -= int(above[place - 1]) if place else 0
            digit = _RADIX - 1 - place
            equal[task] = int(counts[task, digit])
            prefixes[task] = digit - _RADIX // 2 if leading else (prefixes[task] << _DIGIT) | digit
    return [Ranked(*numbers) for numbers in zip(prefixes, ranks, equal, strict=True)]


@compiled
def _count(keys: Keys, shift: int, prefix: int | None, counts: NDArray[np.int64]) -> None:
    """Add up how many keys have which digit of 16 bits, from the bit ``shift`` on.

    Args:
        prefix: of the keys that count, what is above the digit; ``None`` if nothing is. Then negative keys
            come first, and the digit has their sign.
    """
    for key in keys:
        digit = key >> shift
        if prefix is None:
            counts[digit + _RADIX // 2] += 1
        elif (digit >> _DIGIT) == prefix:
            counts[digit & (_RADIX - 1)] += 1


def _keys(tensor: Tensor, magnitude: bool) -> Keys:
    """The entries in row-major order, as integers in the order of the magnitudes, or of the values."""
    flat = tensor.reshape(-1).contiguous()
    bits: Keys = flat.view(torch.int64 if flat.dtype == torch.float64 else torch.int32).numpy()
    return bits & np.iinfo(bits.dtype).max if magnitude else _ordered(bits)


def _numbers(ranked: Sequence[Ranked], dtype: torch.dtype) -> Tensor:
    """The floats whose keys were searched."""
    kind = np.int64 if dtype == torch.float64 else np.int32
    keys: Keys = np.array([each.threshold for each in ranked], kind)
    return torch.from_numpy(_ordered(keys)).view(dtype)


def _ordered(bits: Keys) -> Keys:
    """Float bits as integers in the order of the floats, and back: non-negative ones stay as they are."""
    ordered: Keys = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    return ordered
