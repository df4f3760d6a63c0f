"""TIES: trim, elect sign, merge what agrees."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.rules import sum as addition
from taskvec.rules.magnitude import Cut, cuts_of, located, share, stretches
from taskvec.rules.pairs import Bits, Deltas, Pairs
from taskvec.rules.quantiles import Entries, find
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, Stacks

Numbers = NDArray[np.floating[Any]]


def ties(
    deltas: Deltas,
    *,
    keep: Fraction | Sequence[Fraction] = 0.2,
    trim: Literal["tensor", "global"] = "tensor",
    elect: Literal["mass", "count"] = "mass",
    merge: Literal["mean", "sum", "max"] = "mean",
    weights: Sequence[float] | None = None,
    weigh: Literal["before", "after"] = "before",
    _place: Place = ANYWHERE,
    _cuts: Sequence[Cut] = (),
) -> Tensor:
    """Keep the largest entries of each task, elect a sign, merge those that agree with it.

        trimmed_t = tau_t where |tau_t| is among the largest, else 0
        sign      = sgn(sum_t w_t trimmed_t)
        merged    = mean of w_t trimmed_t over the tasks whose entry has that sign

    Args:
        deltas: (task, *shape), a tensor or the weights whose differences they are.
        keep: fraction of entries kept of each task, above 0 and up to 1; one for all tasks or one for each.
            Of n entries exactly max(1, round(keep n)), equal magnitudes in row-major order.
        trim: whether a fraction of each ``tensor``, or of the whole task vector (``global``, as in the
            paper). The same when there is only one tensor.
        elect: the sign of the sum (``mass``), or of the number of positive minus negative (``count``).
        merge: ``mean``, ``sum``, or the entry of largest magnitude (``max``).
        weights: one for each task, 1 by default.
        weigh: multiply by the weights ``before`` the election, and divide by the weights that agree; or
            ``after`` it, and divide by their number.

    A sum of exactly zero elects plus. The authors' code elects the majority sign of the whole vector there,
    and keeps one entry more.
    Source: Yadav et al. 2023, arXiv:2306.01708; ``weigh``: mergekit (before), PEFT (after).
    """
    if not _cuts:  # no task changes anything here
        return torch.zeros(deltas.shape[1:], dtype=deltas.dtype)
    factors = addition.coefficients(len(deltas), weights=weights)
    ones = [1.0] * len(factors)
    before, after = (factors, ones) if weigh == "before" else (ones, factors)
    merged = torch.empty(deltas.shape[1:], dtype=deltas.dtype)
    result = merged.reshape(-1).numpy()
    numbers = partial(np.asarray, dtype=result.dtype)
    if isinstance(deltas, Pairs):
        entries: tuple[Any, Any] = deltas.ends, deltas.starts
    else:
        entries = deltas.reshape(len(deltas), -1).contiguous().numpy(), None
    chosen = elect == "mass", _MERGES.index(merge)
    for start, stop, bounds in stretches(_cuts, _place.first, len(result), deltas.dtype):
        _merge(*entries, start, stop, numbers(bounds), numbers(before), numbers(after), *chosen, result)
    return merged


_MERGES = ("mean", "sum", "max")
_TILE = 2048  # entries at a time: what is made on the way stays in the first cache


@compiled
def _merge(
    deltas: Numbers | tuple[Bits, ...],
    origins: tuple[Bits, ...] | None,
    start: int,
    stop: int,
    bounds: Numbers,
    before: Numbers,
    after: Numbers,
    mass: bool,
    merge: int,
    merged: Numbers,
) -> None:
    """Trim, elect and merge the entries from ``start`` to ``stop``; NaN stays NaN.

    Args:
        deltas: (task, n); or bfloat16 weights, if the deltas are their differences from the ``origins``.
        bounds: (task,), of magnitudes that go.
        before, after: (task,), factors of the election and of what was elected.
        merged: (n,), written into.
    """
    zero, one = merged.dtype.type(0), merged.dtype.type(1)
    ballots = np.empty((len(bounds), _TILE), merged.dtype)
    signs, counts = np.empty(_TILE, merged.dtype), np.empty(_TILE, merged.dtype)
    for first in range(start, stop, _TILE):
        target = merged[first : min(first + _TILE, stop)]
        size = len(target)
        signs[:], counts[:], target[:] = zero, zero, zero
        for task in range(len(bounds)):
            ballot, bound, factor = ballots[task], bounds[task], before[task]
            ends = deltas[task][first:stop]
            starts = ends if origins is None else origins[task][first:stop]
            for i in range(size):
                if origins is None:
                    entry = ends[i]
                else:
                    end, begun = np.uint32(np.uint32(ends[i]) << 16), np.uint32(np.uint32(starts[i]) << 16)
                    entry = end.view(np.float32) - begun.view(np.float32)
                ballot[i] = zero if abs(entry) <= bound else entry * factor
                signs[i] += ballot[i] if mass else np.sign(ballot[i])
        for i in range(size):
            signs[i] = one if signs[i] >= zero else -one
        for task in range(len(bounds)):
            ballot, factor, count = ballots[task], after[task], before[task]
            for i in range(size):
                # Times the sign, what agrees is positive.
                agreeing = ballot[i] * signs[i]
                differs = agreeing <= zero
                if merge == 2:
                    chosen = zero if differs else agreeing * factor
                    larger = not (abs(chosen) <= abs(target[i]) or target[i] != target[i])
                    target[i] = chosen if larger else target[i]
                else:
                    target[i] += zero if differs else agreeing * factor
                    counts[i] += zero if differs else count
        for i in range(size):
            target[i] *= signs[i]
            if merge == 0:
                target[i] /= one if counts[i] == zero else counts[i]


def measure_tensor(
    stacks: Stacks, name: str, *, keep: float | Sequence[float], trim: str, **_: Any
) -> dict[str, list[Cut]]:
    """One cut for each task, if each tensor is trimmed by itself."""
    if trim == "global":
        return {}
    kept = _shares(stacks.numel(name), keep)
    return {"_cuts": [Cut(math.inf)] * stacks.tasks(name) if kept == 0 else cuts_of(stacks, name, kept)}


def measure_model(
    stacks: Stacks, *, keep: float | Sequence[float], trim: str, **_: Any
) -> dict[str, dict[str, list[Cut]]] | None:
    """One cut for each task over all tensors, its ties dealt out in the order of the tensors."""
    if trim == "tensor":
        return None
    entries = Entries.of_model(stacks)
    if not entries.number:
        return None
    ranked = find(entries, _shares(entries.number, keep))
    left = [each.ties for each in ranked]
    dealt: dict[str, dict[str, list[Cut]]] = {}
    for name in stacks.changed:
        tensor = Entries.of_tensor(stacks, name)
        here = [0] * len(ranked)
        for part in tensor.parts():
            for task, delta in enumerate(part):
                here[task] += int(np.count_nonzero((delta.abs() == ranked[task].threshold).numpy()))
        at_hand = [each._replace(equal=number, until=None) for each, number in zip(ranked, here, strict=True)]
        dealt[name] = {"_cuts": located(tensor, at_hand, left)}
        left = [max(0, ties - number) for ties, number in zip(left, here, strict=True)]
    return dealt


def _shares(entries: int, keep: float | Sequence[float]) -> int | list[int]:
    """How many entries are kept, of all tasks or of each."""
    if isinstance(keep, Sequence):
        return [share(entries, fraction) for fraction in keep]
    return share(entries, keep)


TIES = Rule(
    "ties",
    ties,
    "tensor",
    measure_model=measure_model,
    measure_tensor=measure_tensor,
    takes_pairs=True,
    copies=(1.5, 6),
)
