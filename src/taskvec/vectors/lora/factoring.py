"""Tensors of a task vector as factors: the nearest of a rank, or exactly those of a sum of adapters."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.errors import NonFinite
from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.lowrank import factoring_bytes, leading, leading_of_product, norm_of_product
from taskvec.vectors.lora.sums import Factors
from taskvec.vectors.lora.targets import Target
from taskvec.weights.dtypes import nonfinite_count
from taskvec.weights.writer import nonfinite_message

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factored:
    """The factors of a tensor.

    Attributes:
        b: (experts, out, rank).
        a: (experts, rank, in).
        size: the norm of the tensor.
        missed: the norm of what the factors miss of it.
    """

    b: Tensor
    a: Tensor
    size: float
    missed: float

    def tensors(self, target: Target, factors: Factors | None, module: str) -> dict[str, Tensor]:
        """The factors as PEFT keeps them in a file.

        Args:
            factors: that they were made of, which know the size of a convolution's filter.
            module: what the layer is called in the file.
        """
        module = f"{_PREFIX}{module}"
        a, b = self.a.flatten(0, 1), self.b.permute(1, 2, 0).flatten(1)  # of a stack, experts go last in b
        if target.form == "embedding":
            return {
                f"{module}.lora_embedding_A": a.contiguous(),
                f"{module}.lora_embedding_B": b.contiguous(),
            }
        if target.form == "convolution" and factors is not None:
            filters = factors.filters
            a, b = a.reshape(len(a), -1, *filters), b.reshape(*b.shape, *(1 for _ in filters))
        return {f"{module}.lora_A.weight": a.contiguous(), f"{module}.lora_B.weight": b.contiguous()}


def rank_of(target: Target, factors: Factors | None, rank: int | None) -> int:
    """The rank that a tensor is written with: that of all factors together if none is asked for."""
    if rank is not None:
        return rank
    assert factors is not None
    return factors.rank


def factor(
    vector: Delta, target: Target, factors: Factors | None, rank: int | None, dtype: torch.dtype | None
) -> Factored:
    """The factors of a tensor, in ``dtype``, or in that of computing.

    Args:
        factors: whose product it is, if it is that of some.
        rank: of the nearest product; ``None`` for the factors themselves.

    Raises: NonFinite.
    """
    if factors is not None and _is_thin(target, factors, rank):
        return _of_product(vector, target, factors, rank, dtype)
    delta = target.read(vector)
    _check_finite(vector, target, delta)
    stack = _matrices(target, delta)
    pairs = [leading(matrix, rank or min(matrix.shape)) for matrix in stack]
    b, a = (torch.stack(halves).to(dtype or delta.dtype) for halves in zip(*pairs, strict=True))
    missed = [
        float(torch.linalg.vector_norm(matrix - left.to(delta.dtype) @ right.to(delta.dtype)))
        for matrix, left, right in zip(stack, b, a, strict=True)
    ]
    size = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    return Factored(b, a, size, math.hypot(*missed))


def _is_thin(target: Target, factors: Factors, rank: int | None) -> bool:
    """Whether factors are better left apart than multiplied."""
    return rank is None or factors.rank <= min(target.matrix)


def _of_product(
    vector: Delta, target: Target, factors: Factors, rank: int | None, dtype: torch.dtype | None
) -> Factored:
    left, right = factors.read(target.spec.dtype)
    for half in (left, right):
        _check_finite(vector, target, half)
    b, a = (left, right) if rank is None else leading_of_product(left, right, rank)
    b, a = b.to(dtype or b.dtype), a.to(dtype or a.dtype)
    if rank is None and b.dtype == left.dtype:
        missed = 0.0
    else:
        both = torch.cat([left, -b.to(left.dtype)], -1), torch.cat([right, a.to(right.dtype)], -2)
        missed = norm_of_product(*both)
    return Factored(b, a, norm_of_product(left, right), missed)


def _matrices(target: Target, delta: Tensor) -> Tensor:
    """(experts, out, in)."""
    if target.form == "convolution":
        delta = delta.flatten(1)
    stack = delta if target.experts > 1 else delta[None]
    return stack.mT if target.turned else stack


def _check_finite(vector: Delta, target: Target, held: Tensor) -> None:
    bad = nonfinite_count(held)
    if bad:
        raise NonFinite(nonfinite_message(vector.ref, {target.name: bad}))


def working_bytes(vector: Delta, target: Target, factors: Factors | None, rank: int | None) -> int:
    """Bytes that factoring a tensor takes, about."""
    if factors is not None and _is_thin(target, factors, rank):
        return 8 * target.experts * factors.rank * sum(target.matrix) * torch.float64.itemsize
    dtype = target.spec.dtype
    return target.working_bytes(vector) + factoring_bytes(target.matrix, rank or 0, dtype)


def factor_bytes(target: Target, rank: int, dtype: torch.dtype | None) -> int:
    """Bytes of the factors of a tensor."""
    return target.experts * rank * sum(target.matrix) * (dtype or target.spec.dtype).itemsize
