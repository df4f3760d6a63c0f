"""MGDA: the shortest mean."""

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.nonnegative import nearest_to_zero


def mgda(gram: Array) -> Array:
    """Take the shortest weighted mean of the vectors.

        w = argmin |sum_t w_t g_t|,      w >= 0,  sum_t w_t = 1

    It conflicts with no vector, and has the same inner product with all that have a weight. Short vectors get
    most of it, a zero vector all. Solved exactly, where the source takes Frank-Wolfe steps.
    Source: Désidéri 2012, doi:10.1016/j.crma.2012.03.014; Sener and Koltun 2018, arXiv:1810.04650.
    """
    return nearest_to_zero(gram)


MGDA = Combiner("mgda", mgda)
