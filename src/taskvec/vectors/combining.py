"""Several task vectors made one by a rule."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import RULES, Rule
from taskvec.vectors.base import Base, shared_base
from taskvec.vectors.info import VectorInfo
from taskvec.vectors.sources import Source
from taskvec.vectors.vector import TaskVector, joined_specs
from taskvec.weights import TensorSpec


def combine(
    rule: str | Rule | Callable[..., Tensor], vectors: Sequence[TaskVector], **params: Any
) -> TaskVector:
    """Make one task vector of several.

    Args:
        rule: the name of a rule, a rule, or any function from deltas (task, *shape) to (*shape), called
            tensor by tensor with ``params``.
        vectors: one or more of the same base; a tensor that one lacks is zero there.
        **params: of the rule.

    Returns: a linear form for linear rules; else a vector whose tensors are computed when read.
    Raises: UnknownName; InputError for parameters that do not fit, or no vectors; BaseMismatch.
    """
    if not vectors:
        raise InputError("combine: no task vectors, expected at least one")
    known = _rule(rule)
    settings = dict(params) if callable(rule) and not isinstance(rule, Rule) else known.settings(params)
    if known.coefficients is not None:
        factors = known.coefficients(len(vectors), **settings)
        total = factors[0] * vectors[0]
        for factor, vector in zip(factors[1:], vectors[1:], strict=True):
            total = total + factor * vector
        return total
    base, specs = _common(vectors)
    return TaskVector({Combined(known, vectors, settings, specs): 1.0}, base, specs)


def _rule(rule: str | Rule | Callable[..., Tensor]) -> Rule:
    if isinstance(rule, str):
        return RULES[rule]
    return rule if isinstance(rule, Rule) else Rule(getattr(rule, "__name__", "custom"), rule, "tensor")


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
        specs: Mapping[str, TensorSpec],
    ) -> None:
        said = ", ".join(vector.ref for vector in vectors)
        super().__init__(
            f"{rule.name}({said})",
            ("rule", rule.name, rule.function, repr(sorted(settings.items())), tuple(vectors)),
            specs,
            files=tuple(file for vector in vectors for file in vector.files),
            frozen=all(source.frozen for vector in vectors for source in vector.terms),
        )
        recorded = json.loads(json.dumps(dict(settings), default=repr))
        self.by_rows = rule.scope == "element" and all(vector.by_rows for vector in vectors)
        self.info = VectorInfo(tuned=self.ref, rule={"name": rule.name, **recorded})
        self._rule, self._vectors, self._settings = rule, tuple(vectors), dict(settings)

    def touches(self, name: str) -> bool:
        """Whether any of the vectors changes ``name``."""
        return any(vector.terms_at(name) for vector in self._vectors)

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The rule's tensor, computed from all vectors' tensors."""
        whole = rows if self.by_rows else None
        made = self._rule(
            self._stack(name, whole, dtype), **{**self._settings, **self._prepared.get(name, {})}
        )
        expected = self.specs[name].shape
        if whole is None and made.shape != expected:
            raise InputError(
                f"rule {self._rule.name!r}: {name!r} has shape {tuple(made.shape)}, expected {expected}"
            )
        return made if rows is None or self.by_rows else made[rows]

    def _stack(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        spec = self.specs[name]
        zero = torch.zeros(spec.shape, dtype=dtype)
        absent = zero if rows is None else zero[rows]
        return torch.stack([v.read(name, rows, dtype) if name in v else absent for v in self._vectors])

    @cached_property
    def _prepared(self) -> Mapping[str, Mapping[str, Any]]:
        """What the rule wants to know of the whole model, found in a first pass."""
        if self._rule.prepare is None:
            return {}
        wide = any(spec.dtype == torch.float64 for spec in self.specs.values())
        dtype = torch.float64 if wide else torch.float32

        def stacks() -> Iterator[tuple[str, Tensor]]:
            return ((name, self._stack(name, None, dtype)) for name in self.specs if self.touches(name))

        return self._rule.prepare(stacks, **self._settings) or {}
