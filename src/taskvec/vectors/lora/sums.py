"""Sums of LoRA adapters: their factors side by side are exactly the weighted sum of their products."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.vectors.delta import Delta, Summand
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Product, Stacked
from taskvec.vectors.lora.loaded import Reverted
from taskvec.vectors.lora.targets import Target


@dataclass(frozen=True)
class Part:
    """The factors that an adapter has of a tensor, with the coefficient that it has in a sum."""

    adapter: Adapter
    piece: Product | Stacked
    coefficient: float

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
        return self.parts[0].piece.layer.embedding

    def read(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(experts, out, rank) and (experts, rank, in), whose products are the sum."""
        pairs = [part.adapter.factors(part.piece, dtype) for part in self.parts]
        lefts = [b * part.coefficient for part, (b, _) in zip(self.parts, pairs, strict=True)]
        return torch.cat(lefts, -1), torch.cat([a for _, a in pairs], -2)


def factors_of(vector: Delta, target: Target) -> Factors | None:
    """The factors that a tensor is the product of; ``None`` if it is not of plain adapters alone."""
    first, *others = (vector.terms_at(name) for name in target.sources)
    if not first or any(dict(terms) != dict(first) for terms in others):
        return None
    parts: list[Part] = []
    for summand, coefficient in first:
        adapter, name = _adapter_of(summand, target)
        piece = None if adapter is None else adapter.plain(name)
        if adapter is None or piece is None or (isinstance(piece, Stacked) != (target.experts > 1)):
            return None
        parts.append(Part(adapter, piece, coefficient))
    alike = {(part.piece.layer.embedding, part.filters, part.experts) for part in parts}
    return Factors(parts) if len(alike) == 1 else None


def _adapter_of(summand: Summand, target: Target) -> tuple[Adapter | None, str]:
    """The adapter that a term is, and what it calls the tensor."""
    if isinstance(summand, Reverted) and isinstance(summand.inner, Adapter):
        return summand.inner, target.place
    alone = isinstance(summand, Adapter) and target.conversion is None
    return (summand if isinstance(summand, Adapter) and alone else None), target.name
