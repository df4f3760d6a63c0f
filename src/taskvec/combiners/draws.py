"""Random numbers that a seed alone decides."""

import numpy as np

from taskvec.combiners.combiner import Array


def uniform(seed: int, count: int) -> Array:
    """Independent uniform numbers in [0, 1), (count,), of the counter-based Philox."""
    raw = np.random.Philox(key=seed % 2**64).random_raw(count)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
