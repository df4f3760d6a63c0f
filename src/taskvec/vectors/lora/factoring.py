"""Tensors of a task vector as factors: the nearest of a rank, or exactly those of a sum of adapters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from taskvec.errors import NonFinite
from taskvec.later import torch
from taskvec.vectors.delta import Delta, Summand
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Product, Stacked
from taskvec.vectors.lora.loaded import Reverted
from taskvec.vectors.lora.lowrank import factoring_bytes, leading, leading_of_product, norm_of_product
from taskvec.vectors.lora.targets import Target
from taskvec.vectors.stored.compact.decoding import Decoded
from taskvec.vectors.stored.factored import factors_in
from taskvec.weights.dtypes import nonfinite_count
from taskvec.weights.streaming import nonfinite_message

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterPart:
    """The factors that an adapter has of a tensor, with the coefficient that it has in a sum.

    Attributes:
        turned: whether the tensor is the product transposed.
    """

    adapter: Adapter
    piece: Product | Stacked
    coefficient: float

    @property
    def turned(self) -> bool:
        return self.piece.transposed

    @property
    def embeds(self) -> bool:
        """Whether the layer looks up the columns of the product."""
        return self.piece.layer.embedding

    @property
    def experts(self) -> int:
        """How many matrices the tensor is."""
        return self.piece.experts if isinstance(self.piece, Stacked) else 1

    @property
    def rank(self) -> int:
        """Of each matrix."""
        layer = self.piece.layer
        shape = self.adapter.weights.spec(layer.a).shape
        return (shape[-1] if layer.flipped else shape[0]) // self.experts

    @property
    def filters(self) -> tuple[int, ...]:
        """The size of a convolution's filter; nothing for other layers."""
        layer = self.piece.layer
        return () if layer.flipped else self.adapter.weights.spec(layer.a).shape[2:]

    def read(self, dtype: "torch.dtype") -> "tuple[Tensor, Tensor]":
        """(experts, out, rank) and (experts, rank, in)."""
        return self.adapter.factors(self.piece, dtype)


@dataclass(frozen=True)
class StoredPart:
    """The factors that a tensor was trained by, with the coefficient that it has in a sum.

    Attributes:
        filters: the size of a convolution's filter; nothing for other layers.
        turned: whether the tensor is the product transposed.
    """

    held: Decoded
    name: str
    coefficient: float
    filters: tuple[int, ...]
    turned: bool
    embeds: ClassVar[bool] = False
    experts: ClassVar[int] = 1

    @property
    def rank(self) -> int:
        """Of the matrix."""
        return len(self.held.pair(self.name)[1])

    def read(self, dtype: "torch.dtype") -> "tuple[Tensor, Tensor]":
        """(1, out, rank) and (1, rank, in)."""
        left, right = (half.to(dtype) for half in self.held.pair(self.name))
        b, a = (right.mT, left.mT) if self.turned else (left, right)
        return b[None], a[None]


Part = AdapterPart | StoredPart


@dataclass(frozen=True)
class Factors:
    """A tensor that is a sum of products of factors, ``sum_i c_i B_i A_i``."""

    parts: Sequence[Part]

    @property
    def rank(self) -> int:
        """Of all parts together."""
        return sum(part.rank for part in self.parts)

    @property
    def filters(self) -> tuple[int, ...]:
        """The size of a convolution's filter."""
        return self.parts[0].filters

    @property
    def embeds(self) -> bool:
        """Whether the layer looks up the columns of the product."""
        return self.parts[0].embeds

    def read(self, dtype: "torch.dtype") -> "tuple[Tensor, Tensor]":
        """(experts, out, rank) and (experts, rank, in), whose products are the sum."""
        pairs = [part.read(dtype) for part in self.parts]
        lefts = [b * part.coefficient for part, (b, _) in zip(self.parts, pairs, strict=True)]
        return torch.cat(lefts, -1), torch.cat([a for _, a in pairs], -2)


def factors_of(vector: Delta, target: Target) -> Factors | None:
    """The factors that a tensor is the product of; ``None`` if it is of more than plain adapters and vectors
    that were trained as factors."""
    first, *others = (vector.terms_at(name) for name in target.sources)
    if not first or any(dict(terms) != dict(first) for terms in others):
        return None
    parts = [_part(summand, coefficient, target) for summand, coefficient in first]
    found = [part for part in parts if part is not None]
    alike = {(part.embeds, part.filters, part.experts) for part in found}
    return Factors(found) if len(alike) == 1 and len(found) == len(parts) else None


def _part(summand: Summand, coefficient: float, target: Target) -> Part | None:
    """The factors that a term has of a tensor, if it has nothing else."""
    held = factors_in(summand)
    if held is not None and target.conversion is None and target.name in held.info.coded:
        filters = held.info.coded[target.name][2:]
        return StoredPart(held, target.name, coefficient, filters, target.turned)
    adapter, name = _adapter_of(summand, target)
    piece = None if adapter is None else adapter.plain(name)
    if adapter is None or piece is None or (isinstance(piece, Stacked) != (target.experts > 1)):
        return None
    return AdapterPart(adapter, piece, coefficient)


def _adapter_of(summand: Summand, target: Target) -> tuple[Adapter | None, str]:
    """The adapter that a term is, and what it calls the tensor."""
    if isinstance(summand, Reverted) and isinstance(summand.inner, Adapter):
        return summand.inner, target.place
    alone = isinstance(summand, Adapter) and target.conversion is None
    return (summand if isinstance(summand, Adapter) and alone else None), target.name


@dataclass(frozen=True)
class Factored:
    """The factors of a tensor.

    Attributes:
        b: (experts, out, rank).
        a: (experts, rank, in).
        size: the norm of the tensor.
        missed: the norm of what the factors miss of it.
    """

    b: "Tensor"
    a: "Tensor"
    size: float
    missed: float

    def tensors(self, matrix: "Matrix", module: str) -> "dict[str, Tensor]":
        """The factors as PEFT keeps them in a file.

        Args:
            matrix: that they are of.
            module: what its layer is called in the file.
        """
        module = f"{_PREFIX}{module}"
        a, b = self.a.flatten(0, 1), self.b.permute(1, 2, 0).flatten(1)  # of a stack, experts go last in b
        if matrix.target.form == "embedding":
            return {
                f"{module}.lora_embedding_A": a.contiguous(),
                f"{module}.lora_embedding_B": b.contiguous(),
            }
        if matrix.target.form == "convolution" and matrix.factors is not None:
            filters = matrix.factors.filters
            a, b = a.reshape(len(a), -1, *filters), b.reshape(*b.shape, *(1 for _ in filters))
        return {f"{module}.lora_A.weight": a.contiguous(), f"{module}.lora_B.weight": b.contiguous()}


@dataclass(frozen=True)
class Matrix:
    """A tensor of a vector that is written as factors.

    Attributes:
        factors: whose product it is, if it is that of some.
        asked: the rank of the nearest product; ``None`` for the factors themselves.
    """

    vector: Delta
    target: Target
    factors: Factors | None
    asked: int | None

    @property
    def rank(self) -> int:
        """The rank that it is written with: that of all factors together if none is asked for."""
        if self.asked is not None:
            return self.asked
        assert self.factors is not None
        return self.factors.rank

    def nbytes(self, dtype: "torch.dtype | None") -> int:
        """Bytes of the factors."""
        element = dtype or self.target.spec.dtype
        return self.target.experts * self.rank * sum(self.target.matrix) * element.itemsize

    @property
    def working_bytes(self) -> int:
        """Bytes that factoring takes, about."""
        target, thin = self.target, self._thin
        if thin is not None:
            return 8 * target.experts * thin.rank * sum(target.matrix) * torch.float64.itemsize
        dense = target.working_bytes(self.vector)
        return dense + factoring_bytes(target.matrix, self.asked or 0, target.spec.dtype)

    def factor(self, dtype: "torch.dtype | None") -> Factored:
        """Its factors, in ``dtype``, or in that of computing.

        Raises: NonFinite.
        """
        if self._thin is not None:
            return self._of_product(self._thin, dtype)
        delta = self._finite(self.target.read(self.vector))
        stack = _matrices(self.target, delta)
        pairs = [leading(matrix, self.asked or min(matrix.shape)) for matrix in stack]
        b, a = (torch.stack(halves).to(dtype or delta.dtype) for halves in zip(*pairs, strict=True))
        missed = [
            float(torch.linalg.vector_norm(matrix - left.to(delta.dtype) @ right.to(delta.dtype)))
            for matrix, left, right in zip(stack, b, a, strict=True)
        ]
        size = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
        return Factored(b, a, size, math.hypot(*missed))

    @property
    def _thin(self) -> Factors | None:
        """The factors, where they are better left apart than multiplied."""
        if self.factors is None or self.asked is None or self.factors.rank <= min(self.target.matrix):
            return self.factors
        return None

    def _of_product(self, factors: Factors, dtype: "torch.dtype | None") -> Factored:
        left, right = map(self._finite, factors.read(self.target.spec.dtype))
        b, a = (left, right) if self.asked is None else leading_of_product(left, right, self.asked)
        b, a = b.to(dtype or b.dtype), a.to(dtype or a.dtype)
        missed = 0.0
        if self.asked is not None or b.dtype != left.dtype:
            both = torch.cat([left, -b.to(left.dtype)], -1), torch.cat([right, a.to(right.dtype)], -2)
            missed = norm_of_product(*both)
        return Factored(b, a, norm_of_product(left, right), missed)

    def _finite(self, held: "Tensor") -> "Tensor":
        bad = nonfinite_count(held)
        if bad:
            raise NonFinite(nonfinite_message(self.vector.ref, {self.target.name: bad}))
        return held


def _matrices(target: Target, delta: "Tensor") -> "Tensor":
    """(experts, out, in)."""
    if target.form == "convolution":
        delta = delta.flatten(1)
    stack = delta if target.experts > 1 else delta[None]
    return stack.mT if target.turned else stack
