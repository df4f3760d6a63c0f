"""PCGrad: gradient surgery."""

import numpy as np
from numpy.typing import NDArray

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.draws import uniform
from taskvec.combiners.gram import divided, units


def pcgrad(gram: Array, *, _seed: int = 0) -> Array:
    """Project each vector off every other that it conflicts with, in random order, and add what is left.

        v_i = g_i;  for j != i in random order, if v_i.g_j < 0:  v_i -= (v_i.g_j / |g_j|^2) g_j
        result = sum_i v_i

    Of two vectors, neither loses by the other's step; of more that is not certain. Without conflicts this is
    the sum.
    Source: Yu et al. 2020, arXiv:2001.06782.
    """
    return projected(gram, orders(len(gram), _seed))


def projected(gram: Array, order: NDArray[np.intp]) -> Array:
    """The weights of PCGrad when vector i meets the others in the order ``order[i]``, (task, task - 1)."""
    norms, cosines = units(gram)
    left = np.eye(len(gram))  # of the unit vector of each task, in unit vectors
    tasks = np.arange(len(gram))
    for others in order.T:
        along = np.einsum("it,it->i", left, cosines[others])
        left[tasks, others] -= np.minimum(along, 0)
    return divided(norms @ left, norms)


def orders(tasks: int, seed: int) -> NDArray[np.intp]:
    """For each task the others in a random order, (task, task - 1)."""
    shuffled = np.argsort(uniform(seed, tasks * tasks).reshape(tasks, tasks), axis=1, kind="stable")
    others: NDArray[np.intp] = shuffled[shuffled != np.arange(tasks)[:, None]]
    return others.reshape(tasks, tasks - 1)


PCGRAD = Combiner("pcgrad", pcgrad, sums=True, breaks=("order",))
