"""A matrix as a product of two thin ones."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from taskvec.later import torch
from taskvec.vectors.lora.lowrank import TILE, multiplied
from taskvec.vectors.stored.compact.form import Coded, Entries, Form, Parts, Shape, Specs, floating, plain
from taskvec.weights import TensorSpec
from taskvec.weights.dtypes import compute_dtype

if TYPE_CHECKING:
    from torch import Tensor


class LowRank(Form):
    """The best approximation of rank ``rank`` of each matrix; tensors with other than two axes are kept.

    Parts of a matrix (m, n): ``left`` (m, rank) and ``right`` (rank, n), whose product it is. Factors that
    training found may be of a tensor with more axes, all but the first in one.
    """

    name: ClassVar[str] = "low-rank"
    parts: ClassVar[tuple[str, ...]] = ("left", "right")
    rank: Annotated[int, Field(ge=1)]

    def encode(self, tensor: Entries, dtype: "torch.dtype") -> Coded:
        shape = tensor.spec.shape
        if not self._reduces(shape):
            return plain(tensor, dtype)
        specs = {"left": TensorSpec((shape[0], self.rank), dtype)}
        specs["right"] = TensorSpec((self.rank, shape[1]), dtype)
        return Coded(specs, self._factors(tensor, dtype))

    def working_bytes(self, shape: Shape, dtype: "torch.dtype") -> int:
        if not self._reduces(shape):
            return super().working_bytes(shape, dtype)
        shorter, wide = min(shape), torch.float64.itemsize
        copies = (2 * dtype.itemsize + wide) * math.prod(shape)
        return copies + wide * (6 * shorter**2 + 2 * self.rank * sum(shape))

    def _reduces(self, shape: Shape) -> bool:
        return len(shape) == 2 and self.rank * sum(shape) < math.prod(shape)

    def _factors(self, tensor: Entries, dtype: "torch.dtype") -> "Iterator[tuple[str, int, Tensor]]":
        """The projection on the leading singular vectors of the shorter side, in float64.

        Cost: a Gram matrix and its eigenvectors, min(m, n)^3 operations or so; two float64 copies.
        """
        whole = tensor.read(None)
        size = whole.abs().max().clamp_min(torch.finfo(whole.dtype).tiny)
        matrix = (whole / size).double()
        del whole
        tall = matrix.shape[0] >= matrix.shape[1]
        gram = matrix.T @ matrix if tall else matrix @ matrix.T
        leading = torch.linalg.eigh(gram).eigenvectors[:, -self.rank :].flip(1)
        left, right = (matrix @ leading, leading.T) if tall else (leading, leading.T @ matrix)
        yield "left", 0, (left * size).to(dtype)
        yield "right", 0, right.contiguous().to(dtype)

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> "Tensor":
        first, last, _ = (rows or slice(None)).indices(shape[0])
        start = first // TILE * TILE
        left = parts.read("left", slice(start, min(-(-last // TILE) * TILE, shape[0])))
        right = parts.read("right", None)
        dtype = compute_dtype(right.dtype)
        product = multiplied(left.to(dtype), right.to(dtype), slice(first - start, last - start))
        return product.view(-1, *shape[1:])

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        rank = max(1, *specs["left"].shape[-1:])  # else no number at all would stand for a matrix of any size
        rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else (-1, -1)
        return {
            "left": TensorSpec((rows, rank), floating(specs, "left")),
            "right": TensorSpec((rank, columns), floating(specs, "left")),
        }
