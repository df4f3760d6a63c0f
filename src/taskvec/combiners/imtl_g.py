"""IMTL-G: impartial to every vector."""

import numpy as np

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.gram import divided, equal_projections, units


def imtl_g(gram: Array) -> Array:
    """Take the weighted mean whose projections onto all vectors are equal.

        w = v / sum_t v_t,      v_t = x_t / |g_t|,  C x = 1,  C the cosines

    Weights may be negative, and are large where the v_t nearly cancel; where they do, and where no such mean
    exists, they are zero. Of vectors that depend on each other, x is the shortest solution.
    Source: Liu et al. 2021, "Towards Impartial Multi-task Learning", ICLR.
    """
    norms, cosines = units(gram)
    shares = divided(equal_projections(cosines), norms / (norms.max() or 1), zero=0)
    total = shares.sum()
    certain = abs(total) > 1e-12 * np.abs(shares).sum()
    return shares / total if certain else np.zeros_like(shares)


IMTL_G = Combiner("imtl_g", imtl_g)
