"""A base plus a task vector: the edited model, tensor by tensor."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import BaseMismatch, InputError, KeyMismatch, NonFinite
from taskvec.vectors.base import Base
from taskvec.vectors.checks import check_fits, check_point
from taskvec.vectors.linear import Origins, Spot, total
from taskvec.weights import TensorSpec, Weights, WeightsLike, change, open_weights
from taskvec.weights.change import Change
from taskvec.weights.dtypes import EDITABLE, compute_dtype, rounded, short

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


@checked
def apply(
    base: WeightsLike,
    vector: "TaskVector",
    scale: float = 1.0,
    *,
    allow_other_base: bool = False,
    dtype: torch.dtype | None = None,
    precision: torch.dtype = torch.float32,
) -> "EditedWeights":
    """``base + scale * vector``, lazily; ``base + vector`` is the same for open weights.

    Tensors are computed in ``precision`` and rounded once to the dtype of the result. A tensor that the
    vector does not change is the base's, bit for bit; with scale 1, that of a vector between two models is
    the fine-tuned one's.

    Args:
        scale: the scaling coefficient; negative to forget, 0 for the base itself.
        allow_other_base: apply a vector that was taken from another base, or from an unknown one.
        dtype: element type of the result's floating-point tensors; those of the base by default.
        precision: float32 or float64 for deltas, rules and sums; float64 tensors always take float64.

    Raises: BaseMismatch, naming both fingerprints; KeyMismatch if the vector does not fit; NonFinite.
    """
    weights = open_weights(base)
    if not math.isfinite(scale):
        raise NonFinite(f"scale: {scale}, expected a finite number")
    if precision not in (torch.float32, torch.float64):
        raise InputError(f"precision: {short(precision)}, expected float32 or float64")
    check_point(weights)
    if vector.base.open:
        vector = vector.with_base(weights)
    check_fits(vector.ref, vector.specs, weights)
    own = Base.of(weights)
    if not allow_other_base and not vector.base.same_as(own):
        raise BaseMismatch(
            f"{vector.ref}: base {vector.base}, expected {own}; "
            "allow_other_base=True (--allow-other-base) applies it all the same"
        )
    return EditedWeights(weights, scale * vector, dtype, precision)


class EditedWeights(Weights):
    """The base's tensors with a vector added; tied, named and described as in the base.

    Attributes:
        start: what changes are measured from; the base, where that is a model.
    """

    def __init__(
        self,
        base: Weights,
        vector: "TaskVector",
        dtype: torch.dtype | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(
            f"{base.ref} + {vector.ref}",
            {name: _in(dtype, base.spec(name)) for name in base},
            ("edited", base.identity, frozenset(vector.terms.items()), dtype, precision),
            tied=base.tied,
            folder=base.folder,
            metadata=base.metadata,
            files=(*base.files, *vector.files),
        )
        self.base, self.vector = base, vector
        self.start = base
        self._precision = precision
        self.by_rows = base.by_rows and vector.by_rows
        self.frozen = base.frozen and all(source.frozen for source in vector.terms)
        self._names = _by_stored_name(base, vector)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._made(name, rows, None)

    def read_with_change(self, name: str, rows: slice | None = None) -> tuple[Tensor, Change | None]:
        """As ``read``, and how far that is from what it was made of; integers stay as they are."""
        if self._specs[name].dtype not in EDITABLE:
            return super().read_with_change(name, rows)
        begun = self.start.read(name, rows)
        made = self._made(name, rows, begun if self.start is self.base else None)
        return made, change.between(begun, made)

    def change_to(self, name: str, rows: slice | None, made: Tensor) -> Change | None:
        """How far ``made``, which was read here before, is from the start."""
        editable = made.dtype in EDITABLE
        return change.between(self.start.read(name, rows), made) if editable else None

    def _made(self, name: str, rows: slice | None, stored: Tensor | None) -> Tensor:
        """The edited tensor, or some of its rows; ``stored`` are those of the base, if known."""
        own = self._names.get(name, "")
        terms = self.vector.terms_at(own)
        dtype = self._specs[name].dtype
        if len(terms) == 1 and terms[0][1] == 1.0:
            end = terms[0][0].endpoint(self.base)
            if end is not None:
                return rounded(end.read(own, rows), dtype)
        if stored is None:
            stored = self.base.read(name, rows)
        if not terms:
            return rounded(stored, dtype)
        spot = Spot(own, rows, torch.promote_types(compute_dtype(stored.dtype), self._precision))
        origins = Origins(spot, (self.base, stored) if own == name else None)
        return total(terms, spot, origins, stored, dtype)

    def in_rows(self, name: str) -> bool:
        """Whether rows of this tensor can be had by themselves."""
        own = self._names.get(name)
        return self.base.in_rows(name) and (own is None or self.vector.in_rows(own))

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """The base, and what the vector is made of."""
        return (*self.base.inputs, *self.vector.inputs)

    def prepare(self) -> None:
        """Take the passes over the whole model that the vector needs."""
        self.base.prepare()
        self.vector.prepare(self._precision)

    def working_bytes(self, name: str) -> int:
        """Bytes that computing a block of ``name`` takes, about."""
        own = self._names.get(name)
        wider = self._precision.itemsize // torch.float32.itemsize
        return super().working_bytes(name) + (0 if own is None else wider * self.vector.working_bytes(own))

    def close(self) -> None:
        """Close the base; the vector's sources stay open, others may use them."""
        self.base.close()


def _in(dtype: torch.dtype | None, spec: TensorSpec) -> TensorSpec:
    """The spec after a cast; only what arithmetic is done on is cast."""
    return TensorSpec(spec.shape, dtype) if dtype is not None and spec.dtype in EDITABLE else spec


def _by_stored_name(base: Weights, vector: "TaskVector") -> dict[str, str]:
    """The base's name of each tensor of the vector, which may know it under an alias."""
    names: dict[str, str] = {}
    for name in vector:
        stored = base.tied.get(name, name)
        if stored in names:
            raise KeyMismatch(
                f"{vector.ref}: holds {names[stored]!r} and {name!r}, expected one, as {base.ref} ties them"
            )
        names[stored] = name
    return names
