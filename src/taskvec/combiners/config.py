"""ConFIG: conflict-free, by the pseudoinverse."""

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.gram import divided, equal_projections, units


def config(gram: Array) -> Array:
    """Take the direction with the same cosine to all vectors, as long as these reach along it together.

        d = sum_t x_t g_t / |g_t|,  C x = 1,  C the cosines
        result = (sum_t g_t.d) d / |d|^2

    Of independent vectors it conflicts with none; of dependent ones, x is the nearest to a solution.
    Source: Liu et al. 2024, arXiv:2408.11104.
    """
    norms, cosines = units(gram)
    shares = equal_projections(cosines)
    along = cosines @ shares
    square = shares @ along
    size = norms / (norms.max() or 1)
    length = size @ along / square if square > 1e-12 else 0.0
    return divided(shares * length, size, zero=0)


CONFIG = Combiner("config", config, sums=True)
