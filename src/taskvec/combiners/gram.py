"""Gram matrices G = A Aᵀ of vectors in the rows of A."""

import numpy as np

from taskvec.combiners.combiner import Array


def units(gram: Array) -> tuple[Array, Array]:
    """The norm of each vector (task,), and the Gram matrix of the vectors divided by it.

    Combiners that do not depend on sizes work on the second, so that those never meet. A zero vector stays.
    """
    norms = np.sqrt(np.maximum(gram.diagonal(), 0))
    size = np.where(norms > 0, norms, 1)
    cosines = np.clip(gram / size[:, None] / size, -1, 1)
    np.fill_diagonal(cosines, norms > 0)
    return norms, cosines


def divided(values: Array, norms: Array, zero: float = 1) -> Array:
    """Coefficients of unit vectors as those of the vectors; ``zero`` for vectors that are zero."""
    return np.divide(values, norms, out=np.full_like(norms, zero), where=norms > 0)


def equal_projections(cosines: Array) -> Array:
    """The shortest x with C x = 1, or what comes nearest to it; zeros if nothing does.

    ``sum_i x_i u_i`` has the same inner product with each unit vector u_i.
    """
    found = np.linalg.pinv(cosines, rcond=len(cosines) * np.finfo(np.float64).eps, hermitian=True).sum(1)
    return found if np.abs(found).max() > 1e-12 else np.zeros_like(found)
