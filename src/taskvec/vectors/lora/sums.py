"""Sums of LoRA adapters: their factors side by side are exactly the weighted sum of their products."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Layer


@dataclass(frozen=True)
class Part:
    """A layer of an adapter, with the coefficient that it has in a sum."""

    adapter: Adapter
    layer: Layer
    coefficient: float

    def rank(self, numel: int) -> int:
        """The rank of the factors of a matrix of so many entries."""
        sizes = (self.adapter.weights.spec(key).numel for key in (self.layer.a, self.layer.b))
        return math.isqrt(math.prod(sizes) // numel)

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the first factor has for each of its ranks: inputs, and the size of a filter."""
        shape = self.adapter.weights.spec(self.layer.a).shape
        return shape[:1] if self.layer.flipped else shape[1:]


@dataclass(frozen=True)
class Factors:
    """A tensor that is a sum of products of factors, ``sum_i c_i B_i A_i``."""

    parts: Sequence[Part]
    rank: int
    """Of all of them together."""

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(out, rank) and (rank, in), whose product is the sum."""
        pairs = [part.adapter.factors(part.layer, dtype) for part in self.parts]
        lefts = [b * part.coefficient for part, (b, _) in zip(self.parts, pairs, strict=True)]
        return torch.cat(lefts, 1), torch.cat([a for _, a in pairs])


def factors_of(vector: Delta, name: str) -> Factors | None:
    """The factors that a tensor is the product of; ``None`` if it is not of plain adapters alone."""
    parts: list[Part] = []
    for summand, coefficient in vector.terms_at(name):
        layer = summand.plain(name) if isinstance(summand, Adapter) else None
        if not isinstance(summand, Adapter) or layer is None:
            return None
        parts.append(Part(summand, layer, coefficient))
    alike = {(part.layer.embedding, part.inputs) for part in parts}
    if len(alike) != 1:
        return None
    numel = vector.specs[name].numel
    return Factors(parts, sum(part.rank(numel) for part in parts))
