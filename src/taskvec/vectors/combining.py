"""Several task vectors made one by a rule."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.rules.rule import Place, Stacks
from taskvec.vectors.base import Base, shared_base
from taskvec.vectors.info import VectorInfo
from taskvec.vectors.sources import Source
from taskvec.vectors.statistics import check_statistics
from taskvec.vectors.vector import TaskVector, joined_specs
from taskvec.weights import TensorSpec, Weights, WeightsLike, open_weights

ROOM = 1 << 29
"""Bytes of tensors made of singular vectors that a combination keeps, to be read again at another scale."""


def combine(
    rule: str | Rule | Callable[..., Tensor],
    vectors: Sequence[TaskVector],
    *,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    stats: Sequence[Weights] | None = None,
    **params: Any,
) -> TaskVector:
    """Make one task vector of several.

    Args:
        rule: the name of a rule or of a chain (``dare+ties``), a rule, or any function from deltas
            (task, *shape) to (*shape), called tensor by tensor with ``params``.
        vectors: one or more of the same base; a tensor that one lacks is zero there.
        each: parameters for single tensors, by name; they replace those of ``params``.
        stats: one for each vector, statistics under the model's own tensor names, for rules that use them.
        **params: of the rule.

    Returns: a linear form for linear rules; else a vector whose tensors are computed when read.
    Raises: UnknownName; InputError for parameters that do not fit, or no vectors; BaseMismatch.
    """
    if not vectors:
        raise InputError("combine: no task vectors, expected at least one")
    known = _rule(rule)
    own = callable(rule) and not isinstance(rule, Rule)
    settings = dict(params) if own else known.settings(params, len(vectors))
    single = {
        name: {**params, **some} if own else known.settings({**params, **some}, len(vectors))
        for name, some in (each or {}).items()
    }
    check_statistics(known, vectors, stats)
    if known.coefficients is not None and not single:
        factors = known.coefficients(len(vectors), **settings)
        total = factors[0] * vectors[0]
        for factor, vector in zip(factors[1:], vectors[1:], strict=True):
            total = total + factor * vector
        return total
    base, specs = _common(vectors)
    _check_names(single, specs)
    made = Combined(known, vectors, settings, base, specs, each=single, stats=stats)
    return TaskVector({made: 1.0}, base, specs)


def grounded(vectors: Sequence[TaskVector], base: WeightsLike) -> list[TaskVector]:
    """The vectors with the weights of their base at hand, as rules that act on weights need it.

    Raises: BaseMismatch, with both fingerprints, for a vector of another base.
    """
    own = Base.of(open_weights(base))
    return [
        vector.with_base(base)
        if vector.base.open
        else vector.rebased(shared_base(vector.ref, own, vector.base))
        for vector in vectors
    ]


def _rule(rule: str | Rule | Callable[..., Tensor]) -> Rule:
    if isinstance(rule, str):
        return RULES[rule]
    if isinstance(rule, Rule):
        return RULES.completed(rule.name, [rule])
    return Rule(getattr(rule, "__name__", "custom"), rule, "tensor")


def _check_names(each: Mapping[str, object], specs: Mapping[str, TensorSpec]) -> None:
    for name in each:
        if name not in specs:
            raise InputError(f"parameters for {name!r}: no such tensor; {nearest(name, specs)}")


def _common(vectors: Sequence[TaskVector]) -> tuple[Base, Mapping[str, TensorSpec]]:
    first, *others = vectors
    base, specs = first.base, first.specs
    for vector in others:
        base = shared_base(vector.ref, base, vector.base)
        specs = joined_specs(TaskVector({}, base, specs), vector)
    return base, specs


class Combined(Source):
    """What a rule makes of several vectors."""

    def __init__(
        self,
        rule: Rule,
        vectors: Sequence[TaskVector],
        settings: Mapping[str, Any],
        base: Base,
        specs: Mapping[str, TensorSpec],
        *,
        each: Mapping[str, Mapping[str, Any]],
        stats: Sequence[Weights] | None,
    ) -> None:
        said = ", ".join(vector.ref for vector in vectors)
        super().__init__(
            f"{rule.name}({said})",
            (
                *(
                    "rule",
                    rule.name,
                    rule.function,
                    repr(sorted(settings.items())),
                    repr(sorted(each.items())),
                ),
                *(tuple(vectors), tuple(one.identity for one in stats or ())),
            ),
            specs,
            files=(
                *(file for vector in vectors for file in vector.files),
                *(file for one in stats or () for file in one.files),
            ),
            frozen=all(source.frozen for vector in vectors for source in vector.terms),
        )
        recorded = json.loads(json.dumps({**settings, **({"each": each} if each else {})}, default=repr))
        self.by_rows = rule.by_rows and all(vector.by_rows for vector in vectors)
        self.info = VectorInfo(tuned=self.ref, rule={"name": rule.name, **recorded})
        self._rule, self._vectors, self._settings = rule, tuple(vectors), dict(settings)
        self._each, self._stats = each, tuple(stats or ())
        self._base = base.weights if "_base" in rule.keywords else None
        self._room = ROOM if rule.scope == "matrix" else 0
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def touches(self, name: str) -> bool:
        """Whether any of the vectors changes ``name``."""
        return any(vector.terms_at(name) for vector in self._vectors)

    def grounded(self, base: Weights) -> "Combined":
        """What the rule makes of the vectors among the tensors of ``base``."""
        vectors = [vector.with_base(base) for vector in self._vectors]
        own, specs = _common(vectors)
        _check_names(self._each, specs)
        return Combined(self._rule, vectors, self._settings, own, specs, each=self._each, stats=self._stats)

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The rule's tensor, computed from all vectors' tensors."""
        if self.by_rows and (rows is None or rows.step in (None, 1)):
            return self._made(name, rows, dtype)
        made = self._kept.get((name, dtype))
        if made is None:
            made = self._made(name, None, dtype)
            if made.nbytes <= self._room:
                self._room -= made.nbytes
                self._kept[name, dtype] = made
        return made if rows is None else made[rows]

    def _made(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        stack = self._stack(name, rows, dtype)
        values = {**self._context(name, rows, dtype), **self._prepared.get(name, {})}
        made = self._rule(stack, **{**self._settings, **self._rule.own(values)})
        if made.shape != stack.shape[1:]:
            raise InputError(
                f"rule {self._rule.name!r}: {name!r} has shape {tuple(made.shape)}, "
                f"expected {tuple(stack.shape[1:])}"
            )
        return made

    def _stack(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        spec = self.specs[name]
        zero = torch.zeros(spec.shape, dtype=dtype)
        absent = zero if rows is None else zero[rows]
        return torch.stack([v.read(name, rows, dtype) if name in v else absent for v in self._vectors])

    def _context(self, name: str, rows: slice | None, dtype: torch.dtype) -> dict[str, Any]:
        """What a rule may ask for beside the deltas."""
        shape = self.specs[name].shape
        before = 0 if rows is None else rows.indices(shape[0])[0]
        place = Place(name, before * math.prod(shape[1:]))
        base = None if self._base is None else self._base.read(name, rows).to(dtype)
        found = {"_place": place, "_base": base, **self._each.get(name, {})}
        return {**found, "_stats": self._stats_of(name, rows)} if self._stats else found

    def _stats_of(self, name: str, rows: slice | None) -> list[Tensor | None]:
        """The statistics of each task, of the same rows if they have the shape of the deltas."""
        shape = self.specs[name].shape
        held = ((one, one.spec(name).shape == shape) if name in one else None for one in self._stats)
        return [one and one[0].read(name, rows if one[1] else None) for one in held]

    @cached_property
    def _prepared(self) -> Mapping[str, Mapping[str, Any]]:
        """What the rule wants to know of the whole model, found in a first pass."""
        if self._rule.prepare is None:
            return {}
        wide = any(spec.dtype == torch.float64 for spec in self.specs.values())
        dtype = torch.float64 if wide else torch.float32
        stacks = Stacks(
            tuple(self.specs),
            tuple(name for name in self.specs if self.touches(name)),
            lambda name: self._stack(name, None, dtype),
            lambda name: self._context(name, None, dtype),
        )
        return self._rule.prepare(stacks, **self._settings) or {}
