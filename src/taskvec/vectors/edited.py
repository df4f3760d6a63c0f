"""A base plus a task vector: the edited model, tensor by tensor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from taskvec.errors import BaseMismatch, InputError, KeyMismatch
from taskvec.later import torch
from taskvec.vectors.base import Base
from taskvec.vectors.bits import add, can_add
from taskvec.vectors.checks import check_fits, check_point
from taskvec.vectors.delta import Delta, Reading, Term
from taskvec.vectors.fitting import under_names_of
from taskvec.vectors.linear import total
from taskvec.weights import TensorSpec, Weights, change
from taskvec.weights.change import Change
from taskvec.weights.dtypes import compute_dtype, dtype_of, is_editable, rounded, short
from taskvec.weights.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor


def edit(
    base: Weights,
    delta: Delta,
    *,
    allow_other_base: bool = False,
    dtype: "torch.dtype | str | None" = None,
    precision: "torch.dtype | None" = None,
    start: Weights | None = None,
) -> "EditedWeights":
    """``base + delta``, lazily, after a look at whether they fit; as ``apply`` says.

    Args:
        start: what changes are measured from, if not from the base.

    Raises: BaseMismatch, naming both fingerprints; KeyMismatch if the direction does not fit.
    """
    if precision is not None and short(precision) not in ("float32", "float64"):
        raise InputError(f"precision: {short(precision)}, expected float32 or float64")
    check_point(base)
    base = delta.room(base)
    if delta.base.unbound:
        delta = delta.bind(base)
    delta = under_names_of(base, delta)
    check_fits(delta.ref, delta.specs, base)
    here = Base.of(base)
    if not allow_other_base and not delta.base.same_as(here):
        raise BaseMismatch(
            f"{delta.ref}: base {delta.base}, expected {here}; {delta.base.describe_layout()}"
            "allow_other_base=True (--allow-other-base) applies it all the same"
        )
    return EditedWeights(base, delta, dtype, precision, start)


class EditedWeights(Weights):
    """The base's tensors with a direction added; tied, named and described as in the base."""

    def __init__(
        self,
        base: Weights,
        vector: Delta,
        dtype: "torch.dtype | str | None" = None,
        precision: "torch.dtype | None" = None,
        start: Weights | None = None,
    ) -> None:
        self._precision, self._wide = precision, "float32" if precision is None else short(precision)
        super().__init__(
            f"{base.ref} + {vector.ref}",
            {name: _in(dtype, base.spec(name)) for name in base},
            ("edited", base.identity, vector.identity, None if dtype is None else short(dtype), self._wide),
            parts=(base, vector),
            tied=base.tied,
        )
        self.base, self.vector, self._dtype = base, vector, dtype
        self._start = base if start is None else start
        self._names = _by_stored_name(base, vector)

    @property
    def dtype(self) -> "torch.dtype | None":
        """What floating-point tensors are cast to, if anything."""
        return None if self._dtype is None else dtype_of(short(self._dtype))

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._edit(name, rows, None)

    def read_with_change(self, name: str, rows: slice | None = None) -> "tuple[Tensor, Change | None]":
        """As ``read``, and how far that is from what it was made of; integers stay as they are."""
        if not self._specs[name].editable:
            return super().read_with_change(name, rows)
        begun = self._start.read(name, rows)
        made = self._edit(name, rows, begun if self._start is self.base else None)
        return made, change.between(begun, made)

    def array_with_change(self, name: str, rows: slice | None = None) -> "tuple[NDArray[Any], Change | None]":
        """As ``read_with_change``; between bfloat16 files bit by bit, so that no torch is needed."""
        spec, there = self._specs[name], self._names.get(name, "")
        if not spec.editable:
            return self.base.read_array(name, rows), None
        terms = self.vector.terms_at(there)
        codes = {spec.code, self.base.spec(name).code, self._start.spec(name).code}
        if codes != {"BF16"} or self._wide != "float32" or not can_add(terms, there):
            return super().array_with_change(name, rows)
        stored = self.base.read_array(name, rows)
        begun = stored if self._start is self.base else self._start.read_array(name, rows)
        if not terms:
            made = stored
        elif (end := self._whole_end(terms)) is not None:
            made = end.read_array(there, rows)
        else:
            made = add(terms, there, rows, self.base, stored)
        return made, change.between_bits(begun, made)

    def change_to(self, name: str, rows: slice | None, made: "Tensor") -> Change | None:
        """How far ``made``, which was read here before, is from the start."""
        editable = is_editable(made.dtype)
        return change.between(self._start.read(name, rows), made) if editable else None

    def _edit(self, name: str, rows: slice | None, stored: "Tensor | None") -> "Tensor":
        """The edited tensor, or some of its rows; ``stored`` are those of the base, if known."""
        there = self._names.get(name, "")
        terms = self.vector.terms_at(there)
        dtype = self._specs[name].dtype
        if (end := self._whole_end(terms)) is not None:
            return rounded(end.read(there, rows), dtype)
        if stored is None:
            stored = self.base.read(name, rows)
        if not terms:
            return rounded(stored, dtype)
        precision = torch.promote_types(compute_dtype(stored.dtype), self._precision or torch.float32)
        reading = Reading(there, rows, precision, (self.base, stored) if there == name else None)
        return total(reading.operands(terms), precision, stored, dtype)

    def _whole_end(self, terms: Sequence[Term]) -> Weights | None:
        """The fine-tuned model, where the form is its difference from the base, taken once."""
        if len(terms) != 1 or terms[0][1] != 1.0:
            return None
        ends = terms[0][0].ends
        return ends[1] if ends is not None and ends[0].identity == self.base.identity else None

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        there = self._names.get(name)
        return [(self.base, name), *([] if there is None else [(self.vector, there)])]

    def working_bytes(self, name: str) -> int:
        return super().working_bytes(name) * (2 if self._wide == "float64" else 1)

    def prepare(self, precision: "torch.dtype | None" = None) -> None:
        super().prepare(self._precision)


def _in(dtype: "torch.dtype | str | None", spec: TensorSpec) -> TensorSpec:
    """The spec after a cast; only what arithmetic is done on is cast."""
    return TensorSpec(spec.shape, dtype) if dtype is not None and spec.editable else spec


def _by_stored_name(base: Weights, vector: Delta) -> dict[str, str]:
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
