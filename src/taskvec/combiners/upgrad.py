"""UPGrad: unconflicting projections of every vector."""

from typing import Annotated

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.nonnegative import into_dual_cone


def upgrad(gram: Array, *, ridge: Annotated[float, Field(ge=0)] = 0.0) -> Array:
    """Project each vector to the nearest one that conflicts with none, and average the projections.

        w = 1/T sum_t argmin |sum_s v_s g_s|,      v >= e_t

    Args:
        ridge: share of the summed squared norms that is added to each of them; TorchJD takes 1e-4. The
            result is then shorter where vectors nearly cancel, and may conflict by that much.

    The result conflicts with no vector.
    Source: Quinton and Rey 2024, arXiv:2406.16232.
    """
    weights: Array = into_dual_cone(with_ridge(gram, ridge), np.eye(len(gram))).mean(0)
    return weights


def with_ridge(gram: Array, ridge: float) -> Array:
    """The squared norms enlarged by a share of their sum."""
    return gram + ridge * np.trace(gram) * np.eye(len(gram))  # type: ignore[no-any-return]


UPGRAD = Combiner("upgrad", upgrad)
