"""DualProj: the unconflicting projection of the mean."""

from typing import Annotated

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.nonnegative import into_dual_cone
from taskvec.combiners.upgrad import with_ridge


def dualproj(gram: Array, *, ridge: Annotated[float, Field(ge=0)] = 0.0) -> Array:
    """Project the mean to the nearest vector that conflicts with none.

        w = argmin |sum_t w_t g_t|,      w_t >= 1/T

    Args:
        ridge: share of the summed squared norms that is added to each of them; TorchJD takes 1e-4. The
            result is then shorter where vectors nearly cancel, and may conflict by that much.

    The result conflicts with no vector. Without conflicts with the mean it is the mean.
    Source: Lopez-Paz and Ranzato 2017, arXiv:1706.08840, as in Quinton and Rey 2024, arXiv:2406.16232.
    """
    mean = np.full((1, len(gram)), 1 / len(gram))
    weights: Array = into_dual_cone(with_ridge(gram, ridge), mean)[0]
    return weights


DUALPROJ = Combiner("dualproj", dualproj)
