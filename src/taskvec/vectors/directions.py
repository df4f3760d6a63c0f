"""The plainest directions: between two models, stored in a file, scaled tensor by tensor."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.errors import InputError, NonFinite
from taskvec.later import torch
from taskvec.registry import nearest
from taskvec.vectors.base import Base
from taskvec.vectors.delta import Delta, Summand, Term, computing
from taskvec.vectors.info import VectorInfo
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import LARGEST, promoted

if TYPE_CHECKING:
    from torch import Tensor


class Difference(Summand):
    """From a base to its fine-tuned weights; ``names`` are the tensors of the base that take part."""

    def __init__(self, base: Weights, tuned: Weights, names: list[str]) -> None:
        super().__init__(
            f"{tuned.ref} - {base.ref}",
            ("difference", base.identity, tuned.identity, tuple(names)),
            {name: _computing(base, tuned, name) for name in names},
            Base.of(base),
            parts=(base, tuned),
            recorded=VectorInfo(tuned=tuned.ref),
        )
        self.ends = self._models = (base, tuned)

    def changes(self, name: str) -> bool:
        return name in self.specs and name in self._models[1]  # what it lacks counts as unchanged

    def own_bytes(self, name: str) -> int:
        """Bytes of the difference alone: the two models' blocks stay as they were read."""
        return super().own_bytes(name) // 2

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        base, tuned = self._models  # whose difference is exact where they are within a factor of two
        return tuned.read(name, rows).to(dtype) - base.read(name, rows).to(dtype)


def _computing(base: Weights, tuned: Weights, name: str) -> TensorSpec:
    """The precision that holds both."""
    wide = promoted(base.spec(name).code, (tuned if name in tuned else base).spec(name).code)
    return computing(TensorSpec(base.spec(name).shape, wide))


class Stored(Summand):
    """Deltas in a file or in memory; ``unchanged`` tensors are known to be zero and not stored."""

    def __init__(
        self,
        weights: Weights,
        base: Base,
        recorded: VectorInfo,
        unchanged: Mapping[str, TensorSpec],
    ) -> None:
        super().__init__(
            weights.ref,
            ("stored", weights.identity),
            {**{name: computing(weights.spec(name)) for name in weights}, **unchanged},
            base,
            parts=(weights,),
            recorded=recorded,
        )
        self.weights = self.held = weights

    def changes(self, name: str) -> bool:
        return name in self.weights

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        return self.weights.read(name, rows).to(dtype)


class Scaled(Delta):
    """A direction whose tensors have factors of their own; of a linear form still one.

    Args:
        recorded: its provenance, where that is more than what it is made of.

    Raises: InputError for a factor of a tensor that is not there; NonFinite.
    """

    def __init__(
        self, delta: Delta, factors: Mapping[str, float], recorded: VectorInfo | None = None
    ) -> None:
        for name, factor in factors.items():
            if name not in delta.specs:
                raise InputError(f"scale of {name!r}: no such tensor; {nearest(name, delta.specs)}")
            if not abs(factor) <= LARGEST:
                raise NonFinite(f"scale of {name!r}: {factor}, expected a finite number of float32")
        super().__init__(
            f"scaled({delta.ref})",
            ("scaled", delta, frozenset(factors.items())),
            delta.specs,
            delta.base,
            parts=(delta,),
            recorded=recorded,
        )
        self.delta, self.factors = delta, dict(factors)

    def terms_at(self, name: str, coefficient: float = 1.0) -> list[Term]:
        factor = coefficient * self.factors.get(name, 1.0)
        terms = [(summand, factor * c) for summand, c in self.delta.terms_at(name)] if factor else []
        for _, product in terms:
            if not abs(product) <= LARGEST:
                raise NonFinite(f"scale of {name!r}: {product}, expected a finite float32")
        return terms

    def bind(self, base: Weights, *, drop: bool = False) -> "Scaled":
        return Scaled(self.delta.bind(base, drop=drop), self.factors, self.recorded)
