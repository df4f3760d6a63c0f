"""Sizes of weights, tensor by tensor and layer by layer."""

import math
from collections.abc import Mapping

from taskvec.later import torch
from taskvec.names import layer_label
from taskvec.weights.lazy import Weights


def tensor_norms(weights: Weights) -> dict[str, float]:
    """The Euclidean norm of each floating-point tensor, in float64."""
    return {name: _norm(weights, name) for name in weights if weights.spec(name).floating}


def by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """Norms of tensors joined to norms of layers: names up to their first number, or of their module."""
    squares: dict[str, float] = {}
    for name, norm in norms.items():
        layer = layer_label(name)
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: math.sqrt(square) for layer, square in squares.items()}


def _norm(weights: Weights, name: str) -> float:
    blocks = (weights.read(name, rows) for rows in weights.row_blocks(name))
    return math.hypot(*(float(torch.linalg.vector_norm(block.double())) for block in blocks))
