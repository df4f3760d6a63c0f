"""PCGrad with priorities: the vector of a task that matters more is projected less."""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.draws import uniform
from taskvec.combiners.gram import divided, units


def wpcgrad(
    gram: Array,
    *,
    priorities: list[Annotated[float, Field(ge=0)]] | None = None,
    choice: Literal["drawn", "expected"] = "drawn",
    _seed: int = 0,
) -> Array:
    """Of each two vectors that conflict, project one off the other: rather that of the lower priority.

        for each pair with g_i.g_j < 0, in random order:
            v_i -= min(v_i.g_j, 0) / |g_j|^2 g_j  with probability (1 - p_i) / ((1 - p_i) + (1 - p_j)),
            v_j likewise otherwise
        result = sum_t v_t,      v_t = g_t at first

    Args:
        priorities: one for each task, made to add up to 1 as p; equal by default.
        choice: ``drawn`` as above; ``expected`` projects both, each by its probability of g_i.g_j alone,
            whatever the order: what ``drawn`` is on average of two tasks.

    Our reading: of the method only that a distribution over tasks decides whose vector is projected is
    public to us. Without conflicts this is the sum.
    Source: after Bohn et al. 2024, arXiv:2409.01793.
    """
    norms, cosines = units(gram)
    chances = _chances(np.ones(len(gram)) if priorities is None else np.array(priorities))
    left: Array = np.eye(len(gram))
    if choice == "expected":
        left -= chances * np.minimum(cosines, 0)
    else:
        for moved, other in _drawn(cosines, chances, _seed):
            left[moved, other] -= min(left[moved] @ cosines[other], 0)
    return divided(norms @ left, norms)


def _chances(priorities: Array) -> Array:
    """The probability that of a pair (i, j) it is i that is projected."""
    rest = 1 - priorities / (priorities.sum() or 1)
    both = rest[:, None] + rest
    chances: Array = np.divide(rest[:, None], both, out=np.full_like(both, 0.5), where=both > 0)
    return chances


def _drawn(cosines: Array, chances: Array, seed: int) -> Iterator[tuple[int, int]]:
    """Of each pair that conflicts, in random order, the one to project and the other."""
    first, second = np.nonzero(np.triu(cosines < 0, 1))
    places, chosen = uniform(seed, 2 * cosines.size).reshape(2, *cosines.shape)
    for pair in np.argsort(places[first, second], kind="stable"):
        i, j = int(first[pair]), int(second[pair])
        yield (i, j) if chosen[i, j] < chances[i, j] else (j, i)


def _check(tasks: int | None, *, priorities: list[float] | None, **_: object) -> str | None:
    return "priorities are all 0, expected one above 0" if priorities and not any(priorities) else None


WPCGRAD = Combiner("wpcgrad", wpcgrad, sums=True, breaks=("order",), check=_check)
