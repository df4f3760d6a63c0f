"""Task vectors: linear forms over directions, simplified as they are built, evaluated tensor by tensor."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from taskvec.arguments import checked
from taskvec.errors import KeyMismatch, NonFinite
from taskvec.later import torch
from taskvec.vectors import geometry, opening
from taskvec.vectors.base import Base, shared_base
from taskvec.vectors.checks import Fit, OnExtra, OnMissing, check_fits, check_point
from taskvec.vectors.delta import Delta, Term, computing, join_specs
from taskvec.vectors.directions import Scaled, Stored
from taskvec.vectors.edited import EditedWeights, edit
from taskvec.vectors.fitting import under_names_of
from taskvec.vectors.info import VectorInfo, check_fields
from taskvec.weights import TensorSpec, Weights, WeightsLike, open_weights
from taskvec.weights.change import Change
from taskvec.weights.dtypes import LARGEST, name_of
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.selecting import Choice, checked_renames

if TYPE_CHECKING:
    from torch import Tensor


class TaskVector(Delta):
    """A direction in weight space, as a linear form ``{source: coefficient}``.

    A read-only mapping from tensor names to deltas, float32 (float64 for float64 models), made anew each
    time one is read. Sums, differences and multiples cost nothing: equal directions merge, coefficients that
    cancel vanish, and only reading, saving or applying touches data.

    >>> vector = TaskVector.between({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    >>> (0.5 * vector - vector)["w"]
    tensor([-0.5000, -0.5000])
    """

    @checked
    def __init__(self, terms: Mapping[Delta, float], base: Base, specs: Mapping[str, TensorSpec]) -> None:
        for delta, coefficient in terms.items():
            if not abs(coefficient) <= LARGEST:
                raise NonFinite(
                    f"{delta.ref}: coefficient {coefficient}, expected a finite number of float32"
                )
        kept = sorted(((d, float(c)) for d, c in terms.items() if c != 0), key=lambda term: term[0].order)
        super().__init__(
            " + ".join(_times(c, delta.ref) for delta, c in kept) or "zero vector",
            frozenset(kept),
            specs,
            base,
            parts=[delta for delta, _ in kept],
            recorded=kept[0][0].recorded if len(kept) == 1 and kept[0][1] == 1.0 else None,
        )
        self.terms: Mapping[Delta, float] = dict(kept)
        self.changes: Mapping[str, Change] | None = None
        """How far each tensor leads from the base, once the vector has been saved with the base at hand."""

    @classmethod
    def of(cls, delta: Delta) -> "TaskVector":
        """The form that a direction by itself is."""
        return delta if isinstance(delta, cls) else cls({delta: 1.0}, delta.base, delta.specs)

    @classmethod
    @checked
    def between(
        cls,
        base: WeightsLike,
        tuned: WeightsLike,
        *,
        on_extra: OnExtra = "error",
        on_missing: OnMissing = "error",
        rename: Mapping[str, str] | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_partial: bool = False,
    ) -> "TaskVector":
        """``tuned - base``, over the floating-point tensors of the base. Reads no data.

        Applied to ``base`` with coefficient 1 it gives ``tuned`` bit for bit; integer and boolean tensors
        are no part of it, an edit keeps those of the base. Where ``tuned`` has tensors under other names,
        those of the base are looked for; what is found is logged.

        Args:
            on_extra: ``drop`` leaves out tensors that only ``tuned`` has.
            on_missing: ``zero`` takes tensors that ``tuned`` lacks as unchanged.
            rename: names in ``tuned`` -> names in the base, with ``*`` for any characters.
            include, exclude: patterns of the tensors that take part, and of those that do not.
            allow_partial: take a difference of less than a tenth of the base's tensors.

        Raises: KeyMismatch if names, shapes or dtypes differ.
        """
        start, end = open_weights(base), open_weights(tuned)
        fit = Fit(on_extra, on_missing, Choice(include, exclude), allow_partial)
        return cls.of(opening.between(start, end, fit, checked_renames(rename) if rename else None))

    @classmethod
    @checked
    def from_tensors(
        cls, deltas: Mapping[str, "Tensor"], base: WeightsLike | None, **info: Any
    ) -> "TaskVector":
        """A vector of deltas that are at hand; they are not copied, so leave them as they are.

        Args:
            deltas: float tensors under the model's own names. Those that the base has beyond them are zero.
            base: what they are to be added to; ``None`` if unknown, and then nothing but
                ``allow_other_base`` applies them.
            **info: fields of ``VectorInfo``: task, regime, tuned, training, metrics.

        Raises: KeyMismatch if they do not fit the base, or are not floating point.
        """
        check_fields(info)
        held = open_weights(deltas) if isinstance(deltas, Weights) else MemoryWeights("deltas", dict(deltas))
        for name in held:
            if not held.spec(name).editable:
                raise KeyMismatch(
                    f"deltas: {name!r} has dtype {name_of(held.spec(name).code)}, expected floating point"
                )
        start = None if base is None else open_weights(base)
        unchanged: dict[str, TensorSpec] = {}
        if start is not None:
            check_fits("deltas", {name: held.spec(name) for name in held}, start)
            given = {start.tied.get(name, name) for name in held}
            rest = (name for name in start if name not in given and start.spec(name).editable)
            unchanged = {name: computing(start.spec(name)) for name in rest}
        return cls.of(Stored(held, Base.of(start), VectorInfo(**info), unchanged))

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "TaskVector":
        """Open a task-vector file or folder, or a LoRA adapter; reads its headers only.

        An adapter is a vector of any base that it fits, until ``with_base`` or an edit makes it one of that.

        Args:
            path: of masked vectors with the task, as in ``masked.safetensors#sst2``.

        Raises: InputError if it holds no task vector; CorruptFile.
        """
        return cls.of(opening.load(path))

    @classmethod
    @checked
    def opened(cls, weights: Weights) -> "TaskVector":
        """The vector in a file that is open already.

        Raises: InputError if it holds no task vector; CorruptFile.
        """
        return cls.of(opening.delta_in(weights))

    @classmethod
    @checked
    def random_like(cls, vector: "TaskVector", seed: int) -> "TaskVector":
        """Gaussian noise with the norm of ``vector`` in every tensor: the baseline for any edit.

        A tensor's noise depends on the seed and its name alone.
        """
        return cls.of(opening.noise_like(vector, seed))

    @checked
    def save(
        self,
        path: str | Path,
        *,
        dtype: "torch.dtype | None" = None,
        form: str | None = None,
        force: bool = False,
        **options: Any,
    ) -> Path:
        """Write the vector: a ``.safetensors`` file, or else a folder.

        Args:
            dtype: element type of the deltas; float32 by default, float64 for float64 models.
            form: a compact form with its parameters, ``form="sparse", density=0.1``; see ``docs/compact.md``.
            force: replace an output that exists.
            **options: ``max_shard_size``, ``memory``, ``processes`` and ``watch`` as for ``save_weights``;
                fields of ``VectorInfo`` (task, regime, tuned, training, metrics), which replace those it has;
                parameters of the form.

        Returns: the path written.
        Raises: OutputExists; DiskFull; NonFinite if a delta is NaN or infinite.
        Cost: reads the base and what the vector is made of about twice; memory of a few MiB.
        """
        saved = opening.save(self, path, dtype=dtype, form=form, force=force, **options)
        self.changes = saved.changes
        return saved.path

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read from disk, the base included."""
        base = self.base.weights
        return tuple(dict.fromkeys([*(base.files if base is not None else ()), *super().files]))

    def made_of(self, name: str) -> list[tuple[Delta, str]]:
        """The terms that can change ``name``."""
        return [(delta, name) for delta in self.terms if delta.terms_at(name)]

    def terms_at(self, name: str, coefficient: float = 1.0) -> list[Term]:
        """The terms that can change ``name``, simplified."""
        return [term for delta, c in self.terms.items() for term in delta.terms_at(name, coefficient * c)]

    @checked
    def with_base(self, base: WeightsLike) -> "TaskVector":
        """The same form, taken to be one of ``base``: the explicit way past the check of fingerprints.

        Raises: KeyMismatch if it does not fit.
        """
        weights = open_weights(base)
        check_point(weights)
        weights = self.room(weights)
        vector = self.bind(weights) if self.base.unbound else self
        vector = TaskVector.of(under_names_of(weights, vector))
        check_fits(self.ref, vector.specs, weights)
        return TaskVector(vector.terms, Base.of(weights), vector.specs)

    def bind(self, base: Weights, *, drop: bool = False) -> "TaskVector":
        """The sum of what the terms are among the tensors of ``base``; unchecked."""
        here = Base.of(base)
        bound = [(delta.bind(base, drop=drop), c) for delta, c in self.terms.items()]
        return sum((TaskVector({d: c}, here, d.specs) for d, c in bound), TaskVector({}, here, {}))

    @checked
    def scaled(self, factors: Mapping[str, float]) -> "TaskVector":
        """Each tensor times its own factor; those that are not named stay as they are.

        Raises: InputError for a name that is not there; NonFinite.
        """
        return TaskVector.of(Scaled(self, factors))

    def rebased(self, base: Base) -> "TaskVector":
        """The same form, taken to be one of ``base``, unchecked; for comparing vectors of different bases."""
        if self.base.unbound and not base.unbound:
            return self if base.weights is None else self.with_base(base.weights)
        return TaskVector(self.terms, base, self.specs)

    def norm(self) -> float:
        """The Euclidean norm over all tensors."""
        return geometry.norm(self)

    def norms(self) -> dict[str, float]:
        """The Euclidean norm of every tensor."""
        return geometry.norms(self)

    @checked
    def dot(self, other: "TaskVector") -> float:
        """The inner product."""
        return float(geometry.gram([self, other])[0, 1])

    @checked
    def cosine(self, other: "TaskVector") -> float:
        """The cosine of the angle; NaN if either vector is zero."""
        return float(geometry.cosines([self, other])[0, 1])

    def _plus(self, other: "TaskVector", sign: float) -> "TaskVector":
        base = shared_base(other.ref, self.base, other.base)
        terms = dict(self.terms)
        for delta, coefficient in other.terms.items():
            terms[delta] = terms.get(delta, 0.0) + sign * coefficient
        return TaskVector(terms, base, join_specs(self.ref, self.specs, other))

    @overload
    def __add__(self, other: "TaskVector") -> "TaskVector": ...
    @overload
    def __add__(self, other: Weights) -> EditedWeights: ...
    def __add__(self, other: "TaskVector | Weights") -> "TaskVector | EditedWeights":
        if isinstance(other, TaskVector):
            return self._plus(other, 1.0)
        return apply(other, self) if isinstance(other, Weights) else NotImplemented

    @overload
    def __radd__(self, other: int) -> "TaskVector": ...
    @overload
    def __radd__(self, other: Weights) -> EditedWeights: ...  # type: ignore[misc]  # left to us by weights
    def __radd__(self, other: int | Weights) -> "TaskVector | EditedWeights":
        if isinstance(other, Weights):
            return apply(other, self)
        return self if other == 0 else NotImplemented  # 0 is what sum() starts from

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self._plus(other, -1.0) if isinstance(other, TaskVector) else NotImplemented

    def __rsub__(self, other: Weights) -> EditedWeights:  # type: ignore[misc]  # weights leave this to us
        return apply(other, -self) if isinstance(other, Weights) else NotImplemented

    def __mul__(self, factor: float) -> "TaskVector":
        if not _is_number(factor):
            return NotImplemented
        if not abs(factor) <= LARGEST:
            raise NonFinite(f"{self.ref}: coefficient {factor}, expected a finite number of float32")
        return TaskVector({d: float(factor) * c for d, c in self.terms.items()}, self.base, self.specs)

    __rmul__ = __mul__

    # Without this, a numpy number on the left would take the vector for an array of objects.
    __array_ufunc__ = None

    def __truediv__(self, divisor: float) -> "TaskVector":
        if not _is_number(divisor):
            return NotImplemented
        if not math.isfinite(divisor):
            raise NonFinite(f"{self.ref}: divided by {divisor}, expected a finite number")
        return TaskVector({d: c / float(divisor) for d, c in self.terms.items()}, self.base, self.specs)

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __pos__(self) -> "TaskVector":
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both are the same linear form; then they hold the same tensors."""
        return isinstance(other, TaskVector) and self.identity == other.identity and self.specs == other.specs

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"<task vector {self.ref}: {len(self)} tensors>"


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def _times(coefficient: float, ref: str) -> str:
    if coefficient == 1.0:
        return ref
    return f"{coefficient:g}*({ref})" if " " in ref else f"{coefficient:g}*{ref}"


@checked
def apply(
    base: WeightsLike,
    vector: TaskVector,
    scale: float = 1.0,
    *,
    allow_other_base: bool = False,
    dtype: "torch.dtype | None" = None,
    precision: "torch.dtype | None" = None,
) -> EditedWeights:
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
    return edit(weights, scale * vector, allow_other_base=allow_other_base, dtype=dtype, precision=precision)


@checked
def similarity(vectors: Sequence[TaskVector]) -> "Tensor":
    """The cosine matrix, (n, n) float64, ones on the diagonal; NaN in the rows of a zero vector."""
    return geometry.cosines(vectors)
