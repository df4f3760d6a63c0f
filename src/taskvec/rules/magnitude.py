"""Cuts: what of a tensor is large enough to be kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import prod
from sys import maxsize

import numpy as np
import torch
from torch import Tensor

from taskvec.rules.quantiles import Entries, Ranked, Ranks, find
from taskvec.rules.rule import Stacks


@dataclass(frozen=True)
class Cut:
    """Keep what is larger than ``threshold``, and the entries of exactly that magnitude before ``until``.

    Attributes:
        threshold: the least magnitude that is kept.
        until: the row-major index in the tensor from which on entries equal to the threshold go.
    """

    threshold: float
    until: int = maxsize


def share(entries: int, fraction: float) -> int:
    """How many entries a fraction of them is: the nearest number, at least one; none only for 0."""
    return min(entries, max(1, round(fraction * entries))) if fraction > 0 else 0


def cuts_of(stacks: Stacks, name: str, keep: Ranks) -> list[Cut]:
    """For each task, the cut that keeps exactly ``keep`` entries of one tensor.

    Args:
        keep: from 1 to the number of entries of the tensor.

    Cost: a pass over the tensor, and another where not all of several equal entries are kept.
    """
    if all(number == stacks.numel(name) for number in ([keep] if isinstance(keep, int) else keep)):
        return [Cut(0.0)] * stacks.tasks(name)
    entries = Entries.of_tensor(stacks, name)
    ranked = find(entries, keep)
    return located(entries, ranked, [each.ties for each in ranked])


def located(entries: Entries, ranked: Sequence[Ranked], ties: Sequence[int]) -> list[Cut]:
    """Cuts for a tensor that keep so many ``ties`` of its entries that are equal to the thresholds."""
    until = [
        maxsize if number >= each.equal else each.until if number == each.ties else None
        for number, each in zip(ties, ranked, strict=True)
    ]
    left, first = list(ties), 0
    for part in entries.parts() if None in until else ():
        for task, delta in enumerate(part):
            if until[task] is None:
                equal = np.flatnonzero((delta.abs() == ranked[task].threshold).reshape(-1).numpy())
                if len(equal) > left[task]:
                    until[task] = first + int(equal[left[task]])
                left[task] -= len(equal)
        first += prod(part.shape[1:])
        if None not in until:
            break
    ends = (maxsize if end is None else end for end in until)
    return [Cut(each.threshold, end) for each, end in zip(ranked, ends, strict=True)]


def trim(tensor: Tensor, cut: Cut, first: int = 0) -> Tensor:
    """``tensor`` with everything that the cut does not keep set to zero.

    Args:
        tensor: (*shape), entries of a tensor in row-major order.
        first: the index in that tensor of the first of them.
    """
    made = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    flat, target = tensor.reshape(-1), made.reshape(-1)
    for start, stop, bounds in stretches([cut], first, tensor.numel(), tensor.dtype):
        torch.hardshrink(flat[start:stop], bounds[0], out=target[start:stop])
    return made


def stretches(
    cuts: Sequence[Cut], first: int, number: int, dtype: torch.dtype
) -> Iterator[tuple[int, int, list[float]]]:
    """Stretches of ``number`` entries, and for each cut the bound that magnitudes kept there are above.

    Args:
        first: the index in the tensor of the first of the entries.
    """
    edges = sorted({0, number, *(min(max(cut.until - first, 0), number) for cut in cuts)})
    for start, stop in pairwise(edges):
        kept = [first + stop <= cut.until for cut in cuts]
        yield (
            start,
            stop,
            [
                _below(cut.threshold, dtype) if equal else cut.threshold
                for cut, equal in zip(cuts, kept, strict=True)
            ],
        )


@lru_cache(1 << 12)
def _below(threshold: float, dtype: torch.dtype) -> float:
    """The next smaller float."""
    kind = np.float64 if dtype == torch.float64 else np.float32
    return float(np.nextafter(kind(threshold), kind(0)))
