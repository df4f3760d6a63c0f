"""Sizes of weights, tensor by tensor and layer by layer."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskvec.later import torch
from taskvec.names import layer_label
from taskvec.weights.dtypes import as_float32, dtype_of
from taskvec.weights.lazy import THREADS, Weights

_CHUNK = 1 << 16
"""Entries squared at a time: what they are as float64 stays in cache."""


def tensor_norms(weights: Weights) -> dict[str, float]:
    """The Euclidean norm of each floating-point tensor, in float64; files need no torch for it."""
    names = [name for name in weights if weights.spec(name).floating]
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(partial(_norm, weights), names), strict=True))


def by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms of tensors joined to norms of layers: names up to their first number, or of their module."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = layer_label(name)
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def _norm(weights: Weights, name: str) -> float:
    code = weights.spec(name).code
    return math.sqrt(sum(_square(weights.read_array(name, rows), code) for rows in weights.row_blocks(name)))


def _square(block: NDArray[Any], code: str) -> float:
    """The sum of squares; the same on every machine, as numpy adds in pairs."""
    flat, total = block.reshape(-1), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are said as they are
        for first in range(0, len(flat), _CHUNK):
            wide = _as_float64(flat[first : first + _CHUNK], code)
            total += float(np.add.reduce(np.multiply(wide, wide, out=wide)))
    return total


def _as_float64(entries: NDArray[Any], code: str) -> NDArray[np.float64]:
    """Entries, or the bits of them, as new numbers."""
    if code == "BF16":
        entries = as_float32(entries, code)
    elif code.startswith("F8"):
        table = torch.arange(256, dtype=torch.uint8).view(dtype_of(code)).double().numpy()
        return np.asarray(table[entries])
    return entries.astype(np.float64)
