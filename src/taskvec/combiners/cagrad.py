"""CAGrad: near the mean, for the task that gains least."""

from functools import partial
from typing import Annotated

import numpy as np
from pydantic import Field

from taskvec.combiners.combiner import Array, Combiner
from taskvec.combiners.nonnegative import nearest_to_zero

_SHORT = 1e-6
"""Of a weighted mean, as a share of the longest vector: its direction is rounding."""


def cagrad(gram: Array, *, c: Annotated[float, Field(ge=0)] = 0.5) -> Array:
    """Of the vectors around the mean take the one that the worst-off task gains most by.

        d = argmax min_t g_t.d,      |d - g| <= c |g|,  g the mean
        w = 1/T + c |g| / |g_s| s,      s = argmin g_s.g + c |g| |g_s|,  g_s = sum_t s_t g_t, a weighted mean

    Args:
        c: radius around the mean as a share of its norm. 0 is the mean, 1 and more lead towards ``mgda``.

    Where a weighted mean vanishes, which no step improves for all, this is the mean.
    Source: Liu et al. 2021, arXiv:2110.14048.
    """
    mean = np.full(len(gram), 1 / len(gram))
    scaled = gram / (gram.diagonal().max() or 1)
    size = _norm(scaled, mean)
    if size * c <= _SHORT**2:
        return mean
    chosen = _worst(scaled, c * size)
    length = _norm(scaled, chosen)
    return mean + c * size / length * chosen if length > _SHORT else mean


def _worst(gram: Array, radius: float) -> Array:
    """The weighted mean s that minimises ``g_s.g + radius |g_s|``.

    ``|g_s|`` is the smallest ``(|g_s|^2 / m + m) / 2``, so s is the shortest mean of ``g_t + (m / radius) g``
    for the m that is ``|g_s|``.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # takes long to import

    excess = partial(_excess, gram, radius)
    if excess(_SHORT) <= 0:
        return _given_length(gram, radius, _SHORT)
    return _given_length(gram, radius, brentq(excess, _SHORT, 1.0 + _SHORT, xtol=1e-14, rtol=1e-14))


def _excess(gram: Array, radius: float, length: float) -> float:
    return _norm(gram, _given_length(gram, radius, length)) - length


def _given_length(gram: Array, radius: float, length: float) -> Array:
    shift = length / radius
    along = gram.mean(1)
    return nearest_to_zero(gram + shift * (along[:, None] + along) + shift**2 * along.mean())


def _norm(gram: Array, weights: Array) -> float:
    return float(np.sqrt(max(float(weights @ gram @ weights), 0.0)))


CAGRAD = Combiner("cagrad", cagrad)
