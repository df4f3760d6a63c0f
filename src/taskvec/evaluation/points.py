"""Edited models at one set of coefficients after another, in either space."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError, KeyMismatch, NonFinite
from taskvec.evaluation.linear import LinearFeatures, linear_features
from taskvec.models.backbone import Backbone
from taskvec.place import Precision
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.loaders import Batches
from taskvec.training.loop import Params
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights

Direction = frozenset[str]
"""Labels of vectors that are added up: one for a vector by itself."""


KEPT = 1 << 30
"""Bytes of outputs and slopes that a tangent space keeps for its next points; others are computed again."""


@dataclass(frozen=True)
class TangentPoint:
    """``theta_0 + sum_t a_t tau_t`` in tangent space: a model that is never built. Any number may coexist."""

    points: "TangentPoints"
    coefficients: Mapping[Direction, float]

    def features(self, prepared: Batches) -> Tensor:
        """Features (N, d) of prepared batches."""
        return self.points.linear_features(prepared, self.coefficients).at(self.coefficients)


Point = Params | TangentPoint
"""A model that can be evaluated: parameters, or a place in tangent space."""


def can_keep(point: Point, prepared: Batches, dim: int) -> bool:
    """Whether outputs (R, dim) of prepared batches are of a tangent space, and may stay in memory with it."""
    return isinstance(point, TangentPoint) and point.points.can_keep(prepared, dim, point.coefficients)


class Points(Protocol):
    """Edits ``theta_0 + sum_t a_t tau_t`` of one model by vectors under labels."""

    def at(self, coefficients: Mapping[str, float]) -> Point:
        """The model at a point. In ordinary space it is valid until the next call, and read-only."""

    def shared(self, labels: Sequence[str], coefficient: float) -> Point:
        """The model with the same coefficient on every vector in ``labels``."""


class OrdinaryPoints:
    """One set of parameters, moved from point to point in place.

    Deltas are held dense in float32, one copy of the edited parameters is reused: a move costs a copy and a
    fused multiply-add a vector. Every move starts from the base, so rounding does not accumulate.

    Args:
        base: all parameters a vector may touch, by name; read, never written.
        vectors: by name, each a mapping of deltas; tensors that a vector lacks stay as they are.

    Raises: KeyMismatch if a vector names a tensor that the base lacks, or of another shape; NonFinite.
    """

    @checked
    def __init__(self, base: Params, vectors: Mapping[str, Params]) -> None:
        self._base = {name: value.detach().float() for name, value in base.items()}
        self._deltas = _fitting(self._base, vectors)
        self._params = {name: value.clone() for name, value in self._base.items()}

    def at(self, coefficients: Mapping[str, float]) -> Params:
        """The parameters at a point; valid until the next call, read-only for the caller."""
        _check_labels(coefficients, self._deltas)
        names = list(self._params)
        torch._foreach_copy_([self._params[n] for n in names], [self._base[n] for n in names])
        for label, coefficient in coefficients.items():
            touched = list(self._deltas[label])
            if coefficient and touched:
                torch._foreach_add_(
                    [self._params[n] for n in touched],
                    [self._deltas[label][n] for n in touched],
                    alpha=coefficient,
                )
        return self._params

    def shared(self, labels: Sequence[str], coefficient: float) -> Params:
        """The parameters with the same coefficient on every vector in ``labels``."""
        return self.at(dict.fromkeys(labels, coefficient))


class TangentPoints:
    """The tangent space of a model, and everything computed in it so far.

    The first point on a set of examples costs one pass, 1 + 2T forward passes for its T directions; further
    points on them are sums of what is kept, N x d numbers a direction, for as long as this object lives.

    Args:
        lin: the linearized encoder, of ``(params, inputs of a batch) -> features (n, d)``.
        vectors: deltas by label.
        precision: "float32" or "bf16" (autocast).

    Raises: KeyMismatch if a vector names a tensor that theta_0 lacks, or of another shape; NonFinite.
    """

    @checked
    def __init__(
        self, lin: Linearization, vectors: Mapping[str, Params], *, precision: Precision = "float32"
    ) -> None:
        self._lin = lin
        self._deltas = _fitting(lin.theta0, vectors)
        self._precision: Precision = precision
        self._known: WeakKeyDictionary[Batches, LinearFeatures] = WeakKeyDictionary()

    def at(self, coefficients: Mapping[str, float]) -> TangentPoint:
        """The point with these coefficients; a vector that is not named has coefficient 0."""
        _check_labels(coefficients, self._deltas)
        moved = {frozenset({label}): float(c) for label, c in coefficients.items() if self._deltas[label]}
        return TangentPoint(self, moved)

    def shared(self, labels: Sequence[str], coefficient: float) -> TangentPoint:
        """The point with the same coefficient on every vector in ``labels``.

        All vectors together are one direction, their sum: two forward passes in place of two a vector.
        Always, and not only when it saves something, so that no figure depends on what came before it.
        """
        _check_labels(labels, self._deltas)
        if len(labels) > 1 and set(labels) == self._deltas.keys() and any(self._deltas.values()):
            return TangentPoint(self, {frozenset(labels): float(coefficient)})
        return self.at(dict.fromkeys(labels, coefficient))

    def linear_features(
        self, prepared: Batches, directions: Iterable[Direction] | None = None
    ) -> LinearFeatures:
        """f0 and J tau on prepared batches; what is not known yet is computed in one pass and kept.

        Args:
            directions: those that are needed; by default every vector by itself.
        """
        known = self._known.get(prepared)
        every = [frozenset({label}) for label, delta in self._deltas.items() if delta]
        wanted = list(every if directions is None else directions)
        if known is None:
            taus = {direction: self._tau(direction) for direction in wanted or every[:1]}
            known = linear_features(self._lin, taus or self._nowhere(), prepared, precision=self._precision)
        elif missing := [direction for direction in wanted if direction not in known.slopes]:
            taus = {direction: self._tau(direction) for direction in missing}
            known = known.joined(linear_features(self._lin, taus, prepared, precision=self._precision))
        self._known[prepared] = known
        return known

    def can_keep(self, prepared: Batches, dim: int, directions: Iterable[Direction]) -> bool:
        """Whether what is not known yet of outputs (R, dim) and slopes may stay in memory too."""
        known = self._known.get(prepared)
        missing = len(set(directions) - known.slopes.keys()) if known else 2 + len(set(directions))
        held = sum(features.nbytes for features in self._known.values())
        return held + 4 * prepared.rows * dim * missing <= KEPT

    def _tau(self, direction: Direction) -> Params:
        tau: dict[str, Tensor] = {}
        for label in self._deltas:  # in this order, whatever the set's
            if label in direction:
                for name, delta in self._deltas[label].items():
                    tau[name] = tau[name] + delta if name in tau else delta
        return tau

    def _nowhere(self) -> Mapping[Direction, Params]:
        name, value = next(iter(self._lin.theta0.items()))
        return {frozenset(): {name: torch.zeros_like(value)}}


def dense_deltas(
    backbone: Backbone, vectors: Iterable[TaskVector], beside: Iterable[str] = ()
) -> Iterator[dict[str, Tensor]]:
    """By parameter of a backbone's encoder, how far each task vector moves those that it moves.

    Args:
        beside: further tensors that are looked at, see :func:`beside_encoder`.

    Raises: BaseMismatch if a vector is of another model.
    """
    base = open_weights(backbone.source)  # once: its fingerprint may take a read of everything
    names = {*backbone.encoder_parameters(), *beside}
    for vector in vectors:
        apply(base, vector)  # lazy: only refuses a vector of another base
        yield {name: vector[name] for name in vector if name in names and vector.terms_at(name)}


def beside_encoder(backbone: Backbone) -> dict[str, Tensor]:
    """What no training moves and an edit does: a trained head, and running statistics of batch norms."""
    return {**backbone.head_parameters(), **backbone.statistics()}


def values_of(other: Backbone, backbone: Backbone) -> dict[str, Tensor]:
    """Encoder parameters and running statistics of a checkpoint, by another's names of the same network."""
    held = {**other.encoder_parameters(), **other.statistics()}
    names = {place: stored for stored, place in backbone.places.items()}
    return {names[place]: held[stored].detach() for stored, place in other.places.items() if place in names}


def add_vector(backbone: Backbone, vector: TaskVector) -> Backbone:
    """A copy of a backbone, moved by a task vector of it.

    Raises: BaseMismatch if the vector is of another model.
    """
    copied = deepcopy(backbone)
    beside = beside_encoder(copied)
    [deltas] = dense_deltas(backbone, [vector], beside)
    parameters = {**copied.encoder_parameters(), **beside}
    with torch.no_grad():
        for name, delta in deltas.items():
            parameters[name].add_(delta.to(parameters[name]))
    return copied


def own_space(vectors: Mapping[str, TaskVector]) -> Space:
    """The space that vectors were trained in; a vector that does not say was trained in ordinary space.

    Raises: InputError if they differ, naming two of them.
    """
    spaces = {label: vector.info.space or "ordinary" for label, vector in vectors.items()}
    first: dict[Space, str] = {}
    for label, space in spaces.items():
        first.setdefault(space, label)
    if len(first) > 1:
        raise InputError(
            f"vector {first['tangent']!r} was trained in tangent space and {first['ordinary']!r} in ordinary "
            "space; choose where to evaluate them, --space ordinary or tangent"
        )
    return next(iter(first), "ordinary")


def _fitting(base: Params, vectors: Mapping[str, Params]) -> dict[str, dict[str, Tensor]]:
    """The vectors' deltas in float32 on the base's device, every one checked against the base."""
    deltas: dict[str, dict[str, Tensor]] = {}
    for label, vector in vectors.items():
        for name, delta in vector.items():
            if name not in base:
                raise KeyMismatch(
                    f"vector {label!r}: {name!r} is not among the parameters of the model's encoder; "
                    "was the vector made from another model?"
                )
            if delta.shape != base[name].shape:
                raise KeyMismatch(
                    f"vector {label!r}: {name!r} has shape {tuple(delta.shape)}, expected "
                    f"{tuple(base[name].shape)} as in the model"
                )
            if not bool(delta.isfinite().all()):
                raise NonFinite(
                    f"vector {label!r}: {name!r} holds NaN or infinity; extract or train it again"
                )
        deltas[label] = {name: delta.detach().to(base[name].device).float() for name, delta in vector.items()}
    return deltas


def _check_labels(labels: Iterable[str], known: Mapping[str, object]) -> None:
    for label in labels:
        if label not in known:
            raise InputError(f"no vector called {label!r} among {', '.join(known)}")
