"""Lengths and angles of task vectors, streamed tensor by tensor, accumulated in float64."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.later import torch
from taskvec.vectors.base import shared_base
from taskvec.vectors.delta import Delta
from taskvec.weights.blocks import block_size, row_blocks

if TYPE_CHECKING:
    from torch import Tensor


def norms(vector: Delta) -> dict[str, float]:
    """The Euclidean norm of each tensor."""
    return {name: norm_of(vector, name) for name in vector}


def norm_of(vector: Delta, name: str) -> float:
    """The Euclidean norm of one tensor."""
    return math.sqrt(float(_gram_of(name, [vector])[0, 0]))


def working_bytes(vectors: Sequence[Delta], name: str) -> int:
    """Bytes that the inner products of one tensor of each vector take, a block at a time where that goes."""
    held = [vector for vector in vectors if name in vector and vector.terms_at(name)]
    whole = not all(vector.in_rows(name) for vector in held)
    elements = max((block_size(vector.specs[name].shape, whole=whole) for vector in held), default=0)
    reading = max((vector.working_bytes(name) for vector in held), default=0)
    return reading + 2 * (len(held) + 1) * 8 * elements  # float64


def norm(vector: Delta) -> float:
    """The Euclidean norm over all tensors."""
    return math.sqrt(float(gram([vector])[0, 0]))


def gram(vectors: Sequence[Delta]) -> "Tensor":
    """All inner products, (n, n) float64.

    Raises: BaseMismatch unless all vectors have the same base.
    Cost: every source is read once for each vector it is in.
    """
    base = vectors[0].base
    for vector in vectors[1:]:
        base = shared_base(vector.ref, base, vector.base)
    names = dict.fromkeys(name for vector in vectors for name in vector)
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in names:
        total += _gram_of(name, vectors)
    return total


def cosines(vectors: Sequence[Delta]) -> "Tensor":
    """The cosine matrix, (n, n) float64, ones on the diagonal; NaN in the rows of a zero vector."""
    products = gram(vectors)
    lengths = products.diagonal().sqrt()
    angles = (products / lengths.outer(lengths)).clamp(-1, 1)
    return angles.fill_diagonal_(1.0).masked_fill((lengths == 0)[:, None] | (lengths == 0), math.nan)


def _gram_of(name: str, vectors: Sequence[Delta]) -> "Tensor":
    """Inner products of one tensor of each vector, (n, n) float64."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    places = [place for place, vector in enumerate(vectors) if name in vector and vector.terms_at(name)]
    if not places:
        return total
    pieces = all(vectors[place].in_rows(name) for place in places)
    shape = vectors[places[0]].specs[name].shape
    for rows in row_blocks(shape) if pieces else [None]:
        block = torch.stack([vectors[place].read(name, rows).double().reshape(-1) for place in places])
        total[torch.tensor(places)[:, None], torch.tensor(places)] += block @ block.T
    return total
