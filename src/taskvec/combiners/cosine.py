"""Auxiliary tasks, by how far they agree with a target."""

from typing import Annotated

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.gram import units


def cosine(gram: Array, *, target: Annotated[int, Field(ge=0)] = 0) -> Array:
    """Add to the vector of a target task those of auxiliary tasks, as far as they agree with it.

        w_target = 1,      w_t = max(0, cos(g_target, g_t))

    Args:
        target: number of the target task, from 0.

    Our construction: the cosines that AUX-TS gives to a network that weighs tasks are the weights here.
    Source: after Han et al. 2021, arXiv:2107.08765.
    """
    _, cosines = units(gram)
    weights: Array = np.maximum(cosines[target], 0)
    weights[target] = 1
    return weights


def _check(tasks: int | None, *, target: int) -> str | None:
    return None if tasks is None or target < tasks else f"target is {target}, expected a number below {tasks}"


COSINE = Combiner("cosine", cosine, sums=True, breaks=("order",), check=_check)
