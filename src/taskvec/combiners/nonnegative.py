"""Quadratic problems under bounds, exact up to rounding."""

import numpy as np
from numpy.typing import NDArray

from taskvec.combiners.combiner import Array
from taskvec.combiners.gram import units

_ROUNDING = 1e-13
"""Slopes up to this, of vectors of length 1, are nothing."""


def solve(matrix: Array, slope: Array) -> Array:
    """The x >= 0 with the smallest ``1/2 x.M x + slope.x``, M positive semidefinite, ``slope`` in its range.

    The active-set method of Lawson and Hanson on inner products; scipy's ``nnls`` takes columns that are
    nothing but rounding for directions.
    """
    x, free = np.zeros(len(slope)), np.zeros(len(slope), bool)
    for _ in range(10 * len(slope)):
        falling = np.where(free, 0, -(matrix @ x + slope))
        if falling.max() <= _ROUNDING * len(slope):
            break
        free[falling.argmax()] = True
        x = _within(matrix, slope, x, free)
        free &= x > 0
    return x


def _within(matrix: Array, slope: Array, x: Array, free: NDArray[np.bool_]) -> Array:
    """The minimum over the free entries, or where the way there ends at bounds; ``free`` is left alone."""
    free = free.copy()
    while free.any():
        aim = np.zeros_like(x)
        aim[free] = np.linalg.lstsq(matrix[np.ix_(free, free)], -slope[free], rcond=1e-14)[0]
        stops = free & (aim <= 0)
        if not stops.any():
            return aim
        steps = x[stops] / (x[stops] - aim[stops] + np.finfo(float).tiny)
        x = np.where(free, x + steps.min() * (aim - x), 0)
        free[np.flatnonzero(stops)[steps <= steps.min()]] = False
        x[~free] = 0
    return x


def into_dual_cone(gram: Array, starts: Array) -> Array:
    """For each of the starts (n, task) the weights w >= start of the shortest ``sum_i w_i g_i``, (n, task).

    That is the projection of ``sum_i start_i g_i`` onto the vectors that conflict with no g_i.
    """
    norms, cosines = units(gram)
    largest = norms.max() or 1
    added = np.stack([solve(cosines, cosines @ (start * norms / largest)) for start in starts])
    more: Array = np.divide(added, norms, out=np.zeros_like(added), where=norms > 0)
    return starts + largest * more


def nearest_to_zero(gram: Array) -> Array:
    """The weights of the shortest vector of the convex hull: w >= 0, sum_i w_i = 1."""
    norms, cosines = units(gram)
    if not norms.all():
        return (norms == 0) / np.sum(norms == 0)  # type: ignore[no-any-return]
    # |sum_i u_i g_i|^2 + (sum_i u_i - 1)^2 is smallest, u >= 0, at a multiple of what is sought.
    shares = norms.min() / norms
    found = solve(cosines + np.outer(shares, shares), -shares) * shares
    return found / found.sum()  # type: ignore[no-any-return]
