"""Two models on the same examples: is one better, or was it luck?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Difference:
    """The mean over tasks of a difference of accuracies, a fraction, with its 95 % interval.

    Attributes:
        p: of the two-sided test that there is none.
    """

    mean: float
    interval: tuple[float, float]
    p: float


def paired_difference(differences: Sequence[NDArray[np.float64]]) -> Difference:
    """The difference of two models, from their examples' differences.

        mean = 1/T sum_t mean_i d_ti,    variance = 1/T^2 sum_t var_i(d_ti) / n_t,    z = mean / deviation

    Args:
        differences: of each task (seeds, n): +1 where the first model alone is right, -1 where the second is.
            An example that several seeds share counts once, by its mean over them.

    It says how sure the figure is on other examples of the same tasks, not how it varies from seed to seed.
    """
    over_seeds = [of_task.mean(axis=0) for of_task in differences]
    count = len(over_seeds)
    mean = float(np.mean([values.mean() for values in over_seeds]))
    variance = sum(float(values.var(ddof=1)) / len(values) for values in over_seeds if len(values) > 1)
    deviation = math.sqrt(variance) / count
    normal = NormalDist()
    half = normal.inv_cdf(0.975) * deviation
    p = 2 * normal.cdf(-abs(mean) / deviation) if deviation else float(mean == 0)
    return Difference(mean, (mean - half, mean + half), p)


def holm(probabilities: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected so that 5 % is the chance of any false one among them.

        p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)),    p_(1) <= ... <= p_(m)

    Source: Holm 1979.
    """
    order = np.argsort(probabilities, kind="stable")
    factors = np.arange(len(order), 0, -1)
    raised = np.minimum(1.0, factors * np.asarray(probabilities, float)[order])
    corrected = np.empty(len(order))
    corrected[order] = np.maximum.accumulate(raised) if len(order) else raised
    return [float(p) for p in corrected]
