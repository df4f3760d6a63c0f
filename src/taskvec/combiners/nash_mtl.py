"""Nash-MTL: what tasks would agree on."""

from typing import Annotated

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.gram import divided, units

_STEEP = 1e-8
"""The least eigenvalue that the matrix of cosines is given: of opposed vectors no agreement is finite."""


def nash_mtl(gram: Array, *, max_norm: Annotated[float, Field(gt=0)] = 1.0) -> Array:
    """Take the step that tasks would bargain for: the product of what they gain is largest.

        G w = 1 / w,  w > 0:      w = argmin 1/2 w.G w - sum_t log w_t

    Args:
        max_norm: the result is no longer than this. It is sqrt(T) long otherwise, however long the vectors
            are.

    Each task gains as much as its weight is small. Solved by Newton steps, where the source takes a sequence
    of convex programs. Zero vectors have no say.
    Source: Navon et al. 2022, arXiv:2202.01017.
    """
    norms, cosines = units(gram)
    moved = norms > 0
    agreed = np.zeros(len(gram))
    if moved.any():
        agreed[moved] = _bargain(cosines[np.ix_(moved, moved)])
    length = np.sqrt(max(float(agreed @ cosines @ agreed), 0.0))
    return divided(agreed * min(1, max_norm / (length or 1)), norms, zero=0)


def _bargain(cosines: Array) -> Array:
    """The x > 0 with C x = 1 / x, by damped Newton steps, which converge from anywhere."""
    least = np.linalg.eigvalsh(cosines)[0]
    steady = cosines + max(0, _STEEP - least) * np.eye(len(cosines))
    x = np.full(len(cosines), np.sqrt(len(cosines) / steady.sum()))
    for _ in range(1000):
        slope = steady @ x - 1 / x
        step = np.linalg.solve(steady + np.diag(1 / x**2), slope)
        decrement = np.sqrt(max(float(slope @ step), 0.0))
        x = x - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-10:
            break
    return x


NASH_MTL = Combiner("nash_mtl", nash_mtl, breaks=("scale",))
