"""Aligned-MTL: vectors made orthogonal and equally long."""

from typing import Literal

import numpy as np

from taskvec.combiners.combiner import Array, Combiner


def aligned_mtl(gram: Array, *, scale: Literal["min", "median", "mean"] = "min") -> Array:
    """Average the vectors after making them orthogonal and equally long.

        w = sqrt(scale) V diag(lambda)^(-1/2) V^T 1/T,      G = V diag(lambda) V^T

    Args:
        scale: the squared length that they are given: the least, the median or the mean of the eigenvalues
            ``lambda`` that are not zero. ``mean`` is the code's ``rmse``.

    With ``min`` nothing grows, and vectors that nearly cancel make the result short.
    Source: Senushkin et al. 2023, arXiv:2305.19000.
    """
    tasks = len(gram)
    values, directions = np.linalg.eigh(gram / (gram.diagonal().max() or 1))
    kept = values > tasks * np.finfo(np.float64).eps * values[-1]
    if not kept.any():
        return np.full(tasks, 1 / tasks)
    values, directions = values[kept], directions[:, kept]
    size = {"min": values[0], "median": values[(len(values) - 1) // 2], "mean": values.mean()}[scale]
    return np.sqrt(size) * (directions / np.sqrt(values)) @ directions.mean(0)  # type: ignore[no-any-return]


ALIGNED_MTL = Combiner("aligned_mtl", aligned_mtl)
