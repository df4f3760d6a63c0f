"""The directions that task vectors are linear combinations of."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskvec.errors import InputError, NonFinite
from taskvec.registry import nearest
from taskvec.vectors.info import VectorInfo
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import block_size
from taskvec.weights.dtypes import LARGEST, compute_dtype

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector

_serial = count()


class Source(ABC):
    """One direction, read tensor by tensor. Equal to another if it is known to be the same direction.

    Attributes:
        ref: opens error messages.
        identity: what equality goes by.
        specs: shape, and dtype of computing, of every tensor, changed or not.
        info: provenance where it was recorded.
        by_rows: whether some rows cost less than the whole tensor.
        files: what is read from disk.
        frozen: whether the content cannot change behind our back.
    """

    by_rows = True
    info: VectorInfo | None = None

    def __init__(
        self,
        ref: str,
        identity: Hashable,
        specs: Mapping[str, TensorSpec],
        *,
        files: tuple[Path, ...] = (),
        frozen: bool = True,
    ) -> None:
        self.ref = ref
        self.identity = identity
        self.specs = specs
        self.files = files
        self.frozen = frozen
        # Sums run over sources in this order, however the expression was written: a + b is b + a to the bit.
        self.order = (ref, next(_serial))

    @abstractmethod
    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The direction of one tensor. Not to be written into: it may be memory of a file."""

    def touches(self, name: str) -> bool:
        """Whether the direction of ``name`` can be other than zero."""
        return name in self.specs

    def in_rows(self, name: str) -> bool:
        """Whether some rows of this tensor cost less than the whole."""
        return self.by_rows

    def working_bytes(self, name: str) -> int:
        """Bytes that computing a block of ``name`` takes, about."""
        elements = block_size(self.specs[name].shape, whole=not self.in_rows(name))
        return 2 * self.specs[name].dtype.itemsize * elements

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """The weights that the direction is computed from, if it is."""
        return ()

    def prepare(self, precision: torch.dtype = torch.float32) -> None:  # noqa: B027  # most need nothing
        """Do ahead what reading each tensor once, in a precision, needs; reading does it otherwise."""

    def at(self, name: str, coefficient: float) -> "list[tuple[Source, float]]":
        """The terms that so much of this direction is at one tensor."""
        return [(self, coefficient)] if self.touches(name) else []

    def endpoint(self, base: Weights) -> Weights | None:
        """The weights that a step of exactly 1 from ``base`` leads to, if they are at hand."""
        return None

    def grounded(self, base: Weights) -> "Source":
        """The same direction among the tensors of ``base``, for one that records no base itself."""
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


class Difference(Source):
    """From a base to its fine-tuned weights; ``names`` are the tensors of the base that take part."""

    def __init__(self, base: Weights, tuned: Weights, names: list[str]) -> None:
        super().__init__(
            f"{tuned.ref} - {base.ref}",
            ("difference", base.identity, tuned.identity, tuple(names)),
            {name: computing(base.spec(name)) for name in names},
            files=(*base.files, *tuned.files),
            frozen=base.frozen and tuned.frozen,
        )
        self.by_rows = base.by_rows and tuned.by_rows
        self.base, self.tuned = base, tuned

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """Both models."""
        return (*self.base.inputs, *self.tuned.inputs)

    def touches(self, name: str) -> bool:
        """Whether both models hold ``name``; what the fine-tuned one lacks counts as unchanged."""
        return name in self.specs and name in self.tuned

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """``tuned - base``, exact where the two are within a factor of two of each other."""
        return self.tuned.read(name, rows).to(dtype) - self.base.read(name, rows).to(dtype)

    def endpoint(self, base: Weights) -> Weights | None:
        """The fine-tuned weights, seen from their own base."""
        return self.tuned if base.identity == self.base.identity else None


class Stored(Source):
    """Deltas in a file or in memory; ``unchanged`` tensors are known to be zero and not stored."""

    def __init__(
        self, weights: Weights, info: VectorInfo | None, unchanged: Mapping[str, TensorSpec] | None = None
    ) -> None:
        specs = {name: computing(weights.spec(name)) for name in weights}
        super().__init__(
            weights.ref,
            ("stored", weights.identity),
            {**specs, **(unchanged or {})},
            files=weights.files,
            frozen=weights.frozen,
        )
        self.weights = weights
        self.info = info

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """What holds the deltas."""
        return self.weights.inputs

    def touches(self, name: str) -> bool:
        """Whether a delta is stored for ``name``."""
        return name in self.weights

    def in_rows(self, name: str) -> bool:
        """Whether some rows of what is stored cost less than the whole."""
        return name not in self.weights or self.weights.in_rows(name)

    def working_bytes(self, name: str) -> int:
        """What a block takes in the precision of computing, and reading it."""
        return super().working_bytes(name) + (self.weights.working_bytes(name) if self.touches(name) else 0)

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The stored delta."""
        return self.weights.read(name, rows).to(dtype)


class Scaled(Source):
    """A vector whose tensors have factors of their own.

    Raises: InputError for a factor of a tensor that is not there; NonFinite.
    """

    def __init__(self, vector: "TaskVector", factors: Mapping[str, float]) -> None:
        for name, factor in factors.items():
            if name not in vector.specs:
                raise InputError(f"scale of {name!r}: no such tensor; {nearest(name, vector.specs)}")
            if not abs(factor) <= LARGEST:
                raise NonFinite(f"scale of {name!r}: {factor}, expected a finite number of float32")
        super().__init__(
            f"scaled({vector.ref})",
            ("scaled", vector, frozenset(factors.items())),
            vector.specs,
            files=vector.files,
            frozen=all(source.frozen for source in vector.terms),
        )
        self.by_rows = vector.by_rows
        self.vector, self.factors = vector, dict(factors)

    def in_rows(self, name: str) -> bool:
        """Whether the vector gives rows of this tensor by themselves."""
        return self.vector.in_rows(name)

    def working_bytes(self, name: str) -> int:
        """What the vector takes."""
        return self.vector.working_bytes(name)

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """Those of the vector."""
        return self.vector.inputs

    def prepare(self, precision: torch.dtype = torch.float32) -> None:
        """Do ahead what reading the vector needs."""
        self.vector.prepare(precision)

    def at(self, name: str, coefficient: float) -> list[tuple[Source, float]]:
        """The terms of the vector there, times the factor: a linear form stays one."""
        factor = coefficient * self.factors.get(name, 1.0)
        terms = [(source, factor * own) for source, own in self.vector.terms_at(name)] if factor else []
        for _, product in terms:
            if not abs(product) <= LARGEST:
                raise NonFinite(f"scale of {name!r}: {product}, expected a finite float32")
        return terms

    def touches(self, name: str) -> bool:
        """Whether the vector changes ``name`` and its factor is not zero."""
        return self.factors.get(name, 1.0) != 0 and bool(self.vector.terms_at(name))

    def grounded(self, base: Weights) -> "Scaled":
        """The same factors for the vector among the tensors of ``base``."""
        return Scaled(self.vector.with_base(base), self.factors)

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The vector's delta times the factor of the tensor."""
        return self.vector.read(name, rows, dtype).mul_(self.factors.get(name, 1.0))


def computing(spec: TensorSpec) -> TensorSpec:
    """The same shape in the precision that arithmetic is done in."""
    return TensorSpec(spec.shape, compute_dtype(spec.dtype))
