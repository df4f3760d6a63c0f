"""DARE: drop and rescale."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.rules.draws import RANGE, halves
from taskvec.rules.pairs import Bits, Deltas, entries_of
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, Seed, for_each

_TILE = 1 << 12  # entries at a time: in the first cache

Numbers = NDArray[np.floating[Any]]


def dare(
    deltas: Deltas,
    *,
    density: Fraction | Sequence[Fraction] = 0.1,
    seed: Seed = 0,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Drop entries of each task at random, rescale the rest, then add.

        dropped_t = m_t * tau_t / density,      m_t ~ Bernoulli(density) for every entry

    Args:
        deltas: (task, *shape), a tensor or the weights whose differences they are.
        density: the probability of an entry to be kept, 1 - p for the paper's drop rate p; one for all
            tasks or one for each.
        seed: the mask of an entry depends on it, on the place of the task vector among the others, on the
            name of the tensor and on the entry's index, and on nothing else.

    The expectation is tau_t, and the relative error sqrt((1 - density) / density): 3 at density 0.1.
    Source: Yu et al. 2024, arXiv:2311.03099. mergekit rescales each tensor to its own L1 norm instead.
    """
    kept = torch.empty(deltas.shape, dtype=deltas.dtype)
    chances = for_each(density, len(deltas))
    for task, (out, chance) in enumerate(zip(kept.reshape(len(kept), -1).numpy(), chances, strict=True)):
        bound, rest = divmod(max(1, round(chance * RANGE)), 1 << 16)
        upper = halves("upper", seed, task, _place, len(out))
        # What draws just the bound is kept at first; where the lower bits may decide, they do.
        bound -= rest == 0
        undecided = _drop(*entries_of(deltas, task), upper, np.int32(bound), out.dtype.type(chance), out)
        for index in undecided.tolist() if rest else ():
            if halves("lower", seed, task, Place(_place.name, _place.first + index), 1)[0] >= rest:
                out[index] *= 0
    return kept


@compiled
def _drop(
    entries: Numbers | Bits,
    starts: Bits | None,
    upper: NDArray[np.uint16],
    bound: np.int32,
    chance: np.floating[Any],
    out: Numbers,
) -> NDArray[np.int64]:
    """Keep, over its chance, what drew up to the bound; the indices of what drew just this.

    NaN and infinity do not get lost: what is dropped is multiplied by zero.

    Args:
        entries: deltas; or bfloat16 weights, if the deltas are their differences from ``starts``.
    """
    zero, one = out.dtype.type(0), out.dtype.type(1)
    undecided, number = np.empty(len(out), np.int64), 0
    for start in range(0, len(out), _TILE):
        drawn, target = upper[start : start + _TILE], out[start : start + _TILE]
        ends = entries[start : start + _TILE]
        begun = ends if starts is None else starts[start : start + _TILE]
        for i in range(len(target)):
            if starts is None:
                entry = ends[i]
            else:
                after, before = np.uint32(np.uint32(ends[i]) << 16), np.uint32(np.uint32(begun[i]) << 16)
                entry = after.view(np.float32) - before.view(np.float32)
            target[i] = entry * (one if np.int32(drawn[i]) <= bound else zero) / chance
        equal = np.uint16(0)
        for i in range(len(target)):
            equal |= np.uint16(np.int32(drawn[i]) == bound)
        for i in range(len(target) if equal else 0):
            if np.int32(drawn[i]) == bound:
                undecided[number] = start + i
                number += 1
    return undecided[:number].copy()


DARE = Rule("dare", dare, "element", stage="each", takes_pairs=True, copies=(1.5, 4), breaks=("order",))
