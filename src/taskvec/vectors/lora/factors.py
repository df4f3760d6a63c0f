"""Pairs of factors: whether they fit together, and what they change."""

import math
from collections.abc import Iterator, Sequence

from taskvec.errors import KeyMismatch
from taskvec.later import torch
from taskvec.vectors.lora.contents import Layer, Piece, Product, Shift
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import compute_dtype, is_editable, short

Found = tuple[str, Piece, TensorSpec | None]
"""Name in the model, change, and the shape where the file tells it."""


def pieces_of(weights: Weights, layer: Layer) -> Iterator[tuple[str, Piece, TensorSpec]]:
    """What a layer changes, by name, and its spec."""
    dtype = compute_dtype(torch.promote_types(weights.spec(layer.a).dtype, weights.spec(layer.b).dtype))
    shape = layer.shape_in(weights)
    yield f"{layer.module}.weight", Product(layer, layer.embedding), TensorSpec(shape, dtype)
    if layer.bias is not None:
        yield f"{layer.module}.bias", Shift(layer.bias, layer.scaling), TensorSpec(shape[:1], dtype)


def check_pair(weights: Weights, layer: Layer) -> None:
    """Refuse factors that are no floating-point matrices of one rank, or lengths of another number.

    Raises: KeyMismatch.
    """
    for key in (layer.a, layer.b, layer.magnitude):
        if key is not None:
            check_floating(weights, key)
    a, b = weights.spec(layer.a).shape, weights.spec(layer.b).shape
    inner, outer = (a[-1:], b[:1]) if layer.flipped else (a[:1], (math.prod(b[1:]),))
    if not is_pair(a, b) or inner != outer:
        raise KeyMismatch(
            f"{weights.ref}: {layer.a!r} has shape {a} and {layer.b!r} {b}, expected factors of one rank"
        )
    lengths = None if layer.magnitude is None else weights.spec(layer.magnitude).shape
    if lengths is not None and math.prod(lengths) != layer.shape_in(weights)[0]:
        raise KeyMismatch(
            f"{weights.ref}: {layer.magnitude!r} has shape {lengths}, expected {layer.shape_in(weights)[:1]}"
        )


def is_pair(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether factors are matrices, or filters, with something in them."""
    return min(len(a), len(b)) >= 2 and 0 not in (*a, *b)


def check_floating(weights: Weights, key: str) -> None:
    """Refuse integers.

    Raises: KeyMismatch.
    """
    dtype = weights.spec(key).dtype
    if not is_editable(dtype):
        raise KeyMismatch(f"{weights.ref}: {key!r} has dtype {short(dtype)}, expected floating point")
