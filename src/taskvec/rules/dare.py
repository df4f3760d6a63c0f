"""DARE: drop and rescale."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from taskvec.compiled import compiled
from taskvec.rules.draws import RANGE, below
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, check_each, for_each

Numbers = NDArray[np.floating[Any]]


def dare(
    deltas: Tensor,
    *,
    density: Fraction | Sequence[Fraction] = 0.1,
    seed: Annotated[int, Field(ge=0)] = 0,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Drop entries of each task at random, rescale the rest, then add.

        dropped_t = m_t * tau_t / density,      m_t ~ Bernoulli(density) for every entry

    Args:
        deltas: (task, *shape).
        density: the probability of an entry to be kept, 1 - p for the paper's drop rate p; one for all
            tasks or one for each.
        seed: the mask of an entry depends on it, on the place of the task vector among the others, on the
            name of the tensor and on the entry's index, and on nothing else.

    The expectation is tau_t, and the relative error sqrt((1 - density) / density): 3 at density 0.1.
    Source: Yu et al. 2024, arXiv:2311.03099. mergekit rescales each tensor to its own L1 norm instead.
    """
    kept = torch.empty(len(deltas), deltas[0].numel(), dtype=deltas.dtype)
    chances = for_each(density, len(deltas))
    tasks = zip(deltas.reshape(kept.shape).numpy(), kept.numpy(), chances, strict=True)
    for task, (entries, out, chance) in enumerate(tasks):
        mask = below(max(1, round(chance * RANGE)), seed, task, _place, len(entries))
        _drop(entries, mask, out.dtype.type(chance), out)
    return kept.reshape(deltas.shape)


@compiled
def _drop(entries: Numbers, mask: NDArray[np.bool_], chance: float, out: Numbers) -> None:
    """Keep what the mask keeps, over its chance; NaN and infinity never get lost."""
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for i in range(len(out)):
        out[i] = entries[i] * (one if mask[i] else zero) / chance


def _check(tasks: int | None, *, density: float | Sequence[float], seed: int) -> str | None:
    return check_each(tasks, density=density)


DARE = Rule("dare", dare, "element", stage="each", check=_check)
