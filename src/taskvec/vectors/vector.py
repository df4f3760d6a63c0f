"""Task vectors: linear forms over directions, simplified as they are built, evaluated tensor by tensor."""

import math
from collections.abc import Hashable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import KeyMismatch, NonFinite
from taskvec.vectors import geometry
from taskvec.vectors.base import Base, shared_base
from taskvec.vectors.checks import OnExtra, OnMissing, check_fits, check_point, editable_names
from taskvec.vectors.directions import Difference, Scaled, Source, Stored, computing
from taskvec.vectors.edited import EditedWeights, apply
from taskvec.vectors.info import BaseInfo, VectorInfo, check_fields, read_info
from taskvec.vectors.linear import Origins, Spot, total
from taskvec.vectors.lora.adapter import open_adapter
from taskvec.vectors.noise import Noise
from taskvec.vectors.stored import files
from taskvec.weights import Direction, TensorSpec, Weights, WeightsLike, open_weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.change import Change
from taskvec.weights.dtypes import EDITABLE, LARGEST, short
from taskvec.weights.in_memory import MemoryWeights


class TaskVector(Direction, Mapping[str, Tensor]):
    """A direction in weight space, as a linear form ``{source: coefficient}``.

    A read-only mapping from tensor names to deltas, float32 (float64 for float64 models), made anew each
    time one is read. Sums, differences and multiples cost nothing: equal sources merge, coefficients that
    cancel vanish, and only reading, saving or applying touches data.

    >>> vector = TaskVector.between({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    >>> (0.5 * vector - vector)["w"]
    tensor([-0.5000, -0.5000])
    """

    @checked
    def __init__(self, terms: Mapping[Source, float], base: Base, specs: Mapping[str, TensorSpec]) -> None:
        for source, coefficient in terms.items():
            if not abs(coefficient) <= LARGEST:
                raise NonFinite(
                    f"{source.ref}: coefficient {coefficient}, expected a finite number of float32"
                )
        kept = [(source, float(c)) for source, c in terms.items() if c != 0]
        self.terms: Mapping[Source, float] = dict(sorted(kept, key=lambda term: term[0].order))
        self.base = base
        self.specs = specs
        self.changes: Mapping[str, Change] | None = None
        """How far each tensor leads from the base, once the vector has been saved with the base at hand."""

    @classmethod
    @checked
    def between(
        cls,
        base: WeightsLike,
        tuned: WeightsLike,
        *,
        on_extra: OnExtra = "error",
        on_missing: OnMissing = "error",
    ) -> "TaskVector":
        """``tuned - base``, over the floating-point tensors of the base. Reads no data.

        Applied to ``base`` with coefficient 1 it gives ``tuned`` bit for bit; integer and boolean tensors
        are no part of it, an edit keeps those of the base.

        Args:
            on_extra: ``drop`` leaves out tensors that only ``tuned`` has.
            on_missing: ``zero`` takes tensors that ``tuned`` lacks as unchanged.

        Raises: KeyMismatch if names, shapes or dtypes differ.
        """
        start, end = open_weights(base), open_weights(tuned)
        check_point(start)
        if end.adapter is not None:
            adapter = open_adapter(end).grounded(start, drop=on_extra == "drop")
            return cls({adapter: 1.0}, Base.of(start), adapter.specs)
        check_point(end)
        names = editable_names(start, end, on_extra=on_extra, on_missing=on_missing)
        source = Difference(start, end, names)
        return cls({source: 1.0}, Base.of(start), source.specs)

    @classmethod
    @checked
    def from_tensors(
        cls, deltas: Mapping[str, Tensor], base: WeightsLike | None, **info: Any
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
            if held.spec(name).dtype not in EDITABLE:
                raise KeyMismatch(
                    f"deltas: {name!r} has dtype {short(held.spec(name).dtype)}, expected floating point"
                )
        start = None if base is None else open_weights(base)
        unchanged: dict[str, TensorSpec] = {}
        if start is not None:
            check_fits("deltas", {name: held.spec(name) for name in held}, start)
            given = {start.tied.get(name, name) for name in held}
            rest = (name for name in start if name not in given and start.spec(name).dtype in EDITABLE)
            unchanged = {name: computing(start.spec(name)) for name in rest}
        source = Stored(held, VectorInfo(**info), unchanged)
        return cls({source: 1.0}, Base.of(start), source.specs)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> "TaskVector":
        """Open a task-vector file or folder, or a LoRA adapter; reads its headers only.

        An adapter is a vector of any base that it fits, until ``with_base`` or an edit makes it one of that.

        Args:
            path: of masked vectors with the task, as in ``masked.safetensors#sst2``.

        Raises: InputError if it holds no task vector; CorruptFile.
        """
        place, task = files.with_task(path)
        return cls.opened(open_weights(place)) if task is None else files.masked(place, task)

    @classmethod
    @checked
    def opened(cls, weights: Weights) -> "TaskVector":
        """The vector in a file that is open already.

        Raises: InputError if it holds no task vector; CorruptFile.
        """
        if weights.adapter is not None:
            adapter = open_adapter(weights)
            return cls({adapter: 1.0}, Base(adapter.info.base.ref, open=True), adapter.specs)
        info = read_info(weights)
        weights = files.opened(weights, info)
        dtype = files.widest(weights)
        shapes = {name: TensorSpec(shape, dtype) for name, shape in info.unchanged.items()}
        source = Stored(weights, info, shapes)
        return cls({source: 1.0}, Base(info.base.ref, info.base.fingerprint), source.specs)

    @classmethod
    @checked
    def random_like(cls, vector: "TaskVector", seed: int) -> "TaskVector":
        """Gaussian noise with the norm of ``vector`` in every tensor: the baseline for any edit.

        A tensor's noise depends on the seed and its name alone.
        """
        source = Noise(vector, seed)
        return cls({source: 1.0}, vector.base, vector.specs)

    @checked
    def save(
        self,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
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
        Cost: reads the base and the sources about twice; memory of a few MiB.
        """
        return files.save_vector(self, path, dtype=dtype, form=form, force=force, **options)

    @property
    def info(self) -> VectorInfo:
        """Provenance. A combination records what it is made of. Fingerprints an unread base."""
        base = BaseInfo(ref=self.base.ref, fingerprint=self.base.fingerprint())
        if len(self.terms) == 1:
            [(source, coefficient)] = self.terms.items()
            if coefficient == 1.0 and source.info is not None:
                return source.info.model_copy(update={"base": base})
            if coefficient == 1.0 and isinstance(source, Difference):
                return VectorInfo(base=base, tuned=source.tuned.ref)
        return VectorInfo(base=base, tuned=self.ref)

    @property
    def identity(self) -> Hashable:
        """What equality goes by, together with the tensors."""
        return frozenset(self.terms.items())

    @property
    def ref(self) -> str:
        """The expression, for messages."""
        return " + ".join(_times(c, source.ref) for source, c in self.terms.items()) or "zero vector"

    @property
    def by_rows(self) -> bool:
        """Whether some rows of a tensor cost less than the whole."""
        return all(source.by_rows for source in self.terms)

    def in_rows(self, name: str) -> bool:
        """Whether some rows of this tensor cost less than the whole."""
        return all(source.in_rows(name) for source, _ in self.terms_at(name))

    def working_bytes(self, name: str) -> int:
        """Bytes that computing a block of ``name`` takes, about."""
        return sum(source.working_bytes(name) for source, _ in self.terms_at(name))

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """The weights that it is computed from."""
        return tuple(one for source in self.terms for one in source.inputs)

    def prepare(self, precision: torch.dtype = torch.float32) -> None:
        """Do ahead what reading any tensor in a precision needs, such as passes over the whole model."""
        for source in self.terms:
            source.prepare(precision)

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read from disk, the base included."""
        own = self.base.weights.files if self.base.weights is not None else ()
        return (*own, *(file for source in self.terms for file in source.files))

    def terms_at(self, name: str) -> list[tuple[Source, float]]:
        """The terms that can change ``name``."""
        return [term for source, c in self.terms.items() for term in source.at(name, c)]

    def read(
        self,
        name: str,
        rows: slice | None = None,
        dtype: torch.dtype | None = None,
        *,
        known: tuple[Weights, Tensor] | None = None,
    ) -> Tensor:
        """The delta of one tensor, or of some of its rows, as a new tensor.

        Args:
            dtype: to compute in.
            known: weights of which this spot is read already, and what was read.

        Raises: KeyError for a name that is not there.
        """
        if name not in self.specs:
            raise KeyError(name)
        dtype = dtype or self.specs[name].dtype
        terms = self.terms_at(name)
        if not terms:
            zeros = torch.zeros((), dtype=dtype).expand(self.specs[name].shape)
            return rows_of(zeros, rows).clone()
        spot = Spot(name, rows, dtype)
        return total(terms, spot, Origins(spot, known))

    @checked
    def with_base(self, base: WeightsLike) -> "TaskVector":
        """The same form, taken to be one of ``base``: the explicit way past the check of fingerprints.

        Raises: KeyMismatch if it does not fit.
        """
        weights = open_weights(base)
        check_point(weights)
        vector = self._grounded(weights) if self.base.open else self
        check_fits(self.ref, vector.specs, weights)
        return TaskVector(vector.terms, Base.of(weights), vector.specs)

    def _grounded(self, base: Weights) -> "TaskVector":
        """The sum of what the terms are among the tensors of ``base``."""
        own = Base.of(base)
        found = [(source.grounded(base), c) for source, c in self.terms.items()]
        return sum((TaskVector({s: c}, own, s.specs) for s, c in found), TaskVector({}, own, {}))

    @checked
    def scaled(self, factors: Mapping[str, float]) -> "TaskVector":
        """Each tensor times its own factor; those that are not named stay as they are.

        Raises: InputError for a name that is not there; NonFinite.
        """
        source = Scaled(self, factors)
        return TaskVector({source: 1.0}, self.base, self.specs)

    def rebased(self, base: Base) -> "TaskVector":
        """The same form, taken to be one of ``base``, unchecked; for comparing vectors of different bases."""
        if self.base.open and not base.open:
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
        return geometry.dot(self, other)

    @checked
    def cosine(self, other: "TaskVector") -> float:
        """The cosine of the angle; NaN if either vector is zero."""
        return geometry.cosine(self, other)

    def _plus(self, other: "TaskVector", sign: float) -> "TaskVector":
        base = shared_base(other.ref, self.base, other.base)
        terms = dict(self.terms)
        for source, coefficient in other.terms.items():
            terms[source] = terms.get(source, 0.0) + sign * coefficient
        return TaskVector(terms, base, joined_specs(self, other))

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
        return TaskVector({s: float(factor) * c for s, c in self.terms.items()}, self.base, self.specs)

    __rmul__ = __mul__

    # Without this, a numpy number on the left would take the vector for an array of objects.
    __array_ufunc__ = None

    def __truediv__(self, divisor: float) -> "TaskVector":
        if not _is_number(divisor):
            return NotImplemented
        if not math.isfinite(divisor):
            raise NonFinite(f"{self.ref}: divided by {divisor}, expected a finite number")
        return TaskVector({s: c / float(divisor) for s, c in self.terms.items()}, self.base, self.specs)

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def __pos__(self) -> "TaskVector":
        return self

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same linear form; then they hold the same tensors."""
        return isinstance(other, TaskVector) and self.identity == other.identity and self.specs == other.specs

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"<task vector {self.ref}: {len(self)} tensors>"


def _times(coefficient: float, ref: str) -> str:
    if coefficient == 1.0:
        return ref
    return f"{coefficient:g}*({ref})" if " " in ref else f"{coefficient:g}*{ref}"


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


def joined_specs(first: TaskVector, other: TaskVector) -> Mapping[str, TensorSpec]:
    """The tensors of both.

    Raises: KeyMismatch if one has another shape in the two.
    """
    if first.specs is other.specs:
        return first.specs
    joined = dict(first.specs)
    for name, spec in other.specs.items():
        known = joined.setdefault(name, spec)
        if known.shape != spec.shape:
            raise KeyMismatch(
                f"{other.ref}: {name!r} has shape {spec.shape}, expected {known.shape} as in {first.ref}"
            )
        if spec.dtype == torch.float64:
            joined[name] = spec
    return joined
