"""A base plus a task vector: the edited model, tensor by tensor."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from taskvec.errors import BaseMismatch, KeyMismatch, NonFinite
from taskvec.vectors.base import Base
from taskvec.vectors.checks import check_fits, check_point
from taskvec.weights import Direction, Weights, WeightsLike, open_weights
from taskvec.weights.dtypes import compute_dtype

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


def apply(
    base: WeightsLike, vector: "TaskVector", scale: float = 1.0, *, allow_other_base: bool = False
) -> "EditedWeights":
    """``base + scale * vector``, lazily; ``base + vector`` is the same for open weights.

    Tensors are computed in float32 (float64 for float64 models) and rounded once to the base's dtype. A
    tensor that the vector does not change is the base's, bit for bit; with scale 1, that of a vector
    between two models is the fine-tuned one's.

    Args:
        scale: the scaling coefficient; negative to forget, 0 for the base itself.
        allow_other_base: apply a vector that was taken from another base, or from an unknown one.

    Raises: BaseMismatch, naming both fingerprints; KeyMismatch if the vector does not fit; NonFinite.
    """
    weights = open_weights(base)
    if not isinstance(vector, Direction):
        raise TypeError(f"a task vector is applied, not {type(vector).__name__}; see TaskVector.from_tensors")
    if not math.isfinite(scale):
        raise NonFinite(f"scale: {scale}, expected a finite number")
    check_point(weights)
    check_fits(vector.ref, vector.specs, weights)
    own = Base.of(weights)
    if not allow_other_base and not vector.base.same_as(own):
        raise BaseMismatch(
            f"{vector.ref}: base {vector.base}, expected {own}; "
            "allow_other_base=True (--allow-other-base) applies it all the same"
        )
    return EditedWeights(weights, scale * vector)


class EditedWeights(Weights):
    """The base's tensors with a vector added; tied, named and described as in the base."""

    def __init__(self, base: Weights, vector: "TaskVector") -> None:
        super().__init__(
            f"{base.ref} + {vector.ref}",
            {name: base.spec(name) for name in base},
            ("edited", base.identity, frozenset(vector.terms.items())),
            tied=base.tied,
            folder=base.folder,
            metadata=base.metadata,
            files=(*base.files, *vector.files),
        )
        self.base, self.vector = base, vector
        self.by_rows = base.by_rows and vector.by_rows
        self.frozen = base.frozen and all(source.frozen for source in vector.terms)
        self._names = _by_stored_name(base, vector)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        own = self._names.get(name, "")
        terms = self.vector.terms_at(own)
        if not terms:
            return self.base.read(name, rows)
        if len(terms) == 1 and terms[0][1] == 1.0:
            end = terms[0][0].endpoint(self.base)
            if end is not None:
                return end.read(own, rows)
        dtype = self._specs[name].dtype
        # The deltas are summed first: they are small, and only the last addition rounds at full size.
        edited = self.vector.read(own, rows, compute_dtype(dtype))
        return edited.add_(self.base.read(name, rows)).to(dtype)

    def close(self) -> None:
        """Close the base; the vector's sources stay open, others may use them."""
        self.base.close()


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
