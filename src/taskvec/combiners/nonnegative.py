"""Least squares under bounds, exact up to rounding."""

import numpy as np

from taskvec.combiners.combiner import Array
from taskvec.combiners.gram import root, units


def solve(columns: Array, target: Array) -> Array:
    """The x >= 0 with the smallest |columns x - target|."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # takes long to import

    found: Array = nnls(columns, target, maxiter=100 * len(target))[0]
    return found


def into_dual_cone(gram: Array, starts: Array) -> Array:
    """For each of the starts (n, task) the weights w >= start of the shortest ``sum_i w_i g_i``, (n, task).

    That is the projection of ``sum_i start_i g_i`` onto the vectors that conflict with no g_i.
    """
    norms, cosines = units(gram)
    largest = norms.max() or 1
    columns = root(cosines)
    added = np.stack([solve(columns, -columns @ (start * norms / largest)) for start in starts])
    more: Array = np.divide(added, norms, out=np.zeros_like(added), where=norms > 0)
    return starts + largest * more


def nearest_to_zero(gram: Array) -> Array:
    """The weights of the shortest vector of the convex hull: w >= 0, sum_i w_i = 1."""
    norms, cosines = units(gram)
    if not norms.all():
        return (norms == 0) / np.sum(norms == 0)  # type: ignore[no-any-return]
    # |sum_i u_i g_i|^2 + (sum_i u_i - 1)^2 is smallest, u >= 0, at a multiple of what is sought.
    shares = norms.min() / norms
    found = solve(np.vstack([root(cosines), shares]), np.append(np.zeros(len(gram)), 1)) * shares
    return found / found.sum()  # type: ignore[no-any-return]
