"""A matrix as a product of two thin ones."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from taskvec.vectors.compact.form import PLAIN, Form, Parts, Shape, Specs, floating
from taskvec.vectors.lowrank import TILE, multiplied
from taskvec.weights import TensorSpec
from taskvec.weights.dtypes import compute_dtype


class LowRank(Form):
    """The best approximation of rank ``rank`` of each matrix; tensors with other than two axes are kept.

    Parts of a matrix (m, n): ``left`` (m, rank) and ``right`` (rank, n), whose product it is.
    """

    name: ClassVar[str] = "low-rank"
    parts: ClassVar[tuple[str, ...]] = ("left", "right")
    rank: Annotated[int, Field(ge=1)]

    def encode(self, tensor: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The projection on the leading singular vectors of the shorter side, in float64.

        Cost: a Gram matrix and its eigenvectors, min(m, n)^3 operations or so; two float64 copies.
        """
        if tensor.dim() != 2 or self.rank * sum(tensor.shape) >= tensor.numel():
            return {PLAIN: tensor.to(dtype)}
        size = tensor.abs().max().clamp_min(torch.finfo(tensor.dtype).tiny)
        matrix = (tensor / size).double()
        tall = matrix.shape[0] >= matrix.shape[1]
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
        leading = torch.linalg.eigh(gram).eigenvectors[:, -self.rank :].flip(1)
        left, right = (matrix @ leading, leading.T) if tall else (leading, leading.T @ matrix)
        return {"left": (left * size).to(dtype), "right": right.contiguous().to(dtype)}

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> Tensor:
        """The product, of whole tiles of rows."""
        first, last, _ = (rows or slice(None)).indices(shape[0])
        start = first // TILE * TILE
        left = parts.read("left", slice(start, min(-(-last // TILE) * TILE, shape[0])))
        right = parts.read("right", None)
        dtype = compute_dtype(right.dtype)
        return multiplied(left.to(dtype), right.to(dtype), slice(first - start, last - start))

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        """Two matrices that have one side in common."""
        rank = max(1, *specs["left"].shape[-1:])  # else no number at all would stand for a matrix of any size
        rows, columns = (shape[0], shape[1]) if len(shape) == 2 else (-1, -1)
        return {
            "left": TensorSpec((rows, rank), floating(specs, "left")),
            "right": TensorSpec((rank, columns), floating(specs, "left")),
        }
