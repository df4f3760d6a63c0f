"""Several task vectors made one by a rule."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from threading import RLock
from typing import TYPE_CHECKING, Any

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.rules.rule import Piece, Place, Stacks
from taskvec.vectors.base import Base, shared_base
from taskvec.vectors.delta import Delta, Reading, Summand, join_specs
from taskvec.vectors.info import VectorInfo
from taskvec.vectors.linear import DeltaStack
from taskvec.vectors.statistics import check_statistics
from taskvec.vectors.vector import TaskVector
from taskvec.weights import TensorSpec, Weights, WeightsLike, open_weights
from taskvec.weights.blocks import (
    block_size,
    block_step,
    row_blocks,
    row_count,
    row_size,
    rows_of,
    rows_shape,
)
from taskvec.weights.depth import names_behind

if TYPE_CHECKING:
    from torch import Tensor

# Singular vectors cost far more than reading, and the same merge is often evaluated at many scales.
ROOM = 1 << 29
"""Bytes of tensors made of singular vectors that a combination keeps."""


@checked
def combine(
    rule: str | Rule | Callable[..., "Tensor"],
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
    check: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    if isinstance(rule, str | Rule):
        check = partial(known.settings, tasks=len(vectors))
    settings = check(params)
    single = {name: check({**params, **changed}) for name, changed in (each or {}).items()}
    if isinstance(rule, str | Rule):
        known.check_varying([settings, *single.values()], len(vectors))
    check_statistics(known, vectors, stats)
    base, specs = _common(vectors)
    for name in single:
        if name not in specs:
            raise InputError(f"parameters for {name!r}: no such tensor; {nearest(name, specs)}")
    if known.coefficients is None:
        return TaskVector.of(Combined(known, vectors, settings, base, specs, each=single, stats=stats))
    factors = known.coefficients(len(vectors), **settings)
    varying = {name: known.coefficients(len(vectors), **changed) for name, changed in single.items()}
    first, *others = (
        _weighted(vector, factors[place], {name: values[place] for name, values in varying.items()})
        for place, vector in enumerate(vectors)
    )
    return sum(others, first)


def _weighted(vector: TaskVector, factor: float, varying: Mapping[str, float]) -> TaskVector:
    """The vector times a factor, instead of which some tensors have another."""
    varying = {name: value for name, value in varying.items() if name in vector and value != factor}
    return vector.scaled({**dict.fromkeys(vector, factor), **varying}) if varying else factor * vector


def bind_all(vectors: Sequence[TaskVector], base: WeightsLike) -> list[TaskVector]:
    """The vectors with the weights of their base at hand, as rules that act on weights need it.

    Raises: BaseMismatch, with both fingerprints, for a vector of another base.
    """
    here = Base.of(open_weights(base))
    return [
        vector.with_base(base)
        if vector.base.unbound
        else vector.rebased(shared_base(vector.ref, here, vector.base))
        for vector in vectors
    ]


def _rule(rule: str | Rule | Callable[..., "Tensor"]) -> Rule:
    if isinstance(rule, str):
        return RULES[rule]
    if isinstance(rule, Rule):
        return RULES.completed(rule.name, [rule])
    return Rule(getattr(rule, "__name__", "custom"), rule, "tensor")


def _common(vectors: Sequence[Delta]) -> tuple[Base, Mapping[str, TensorSpec]]:
    first, *others = vectors
    base, specs = first.base, first.specs
    for vector in others:
        base = shared_base(vector.ref, base, vector.base)
        specs = join_specs(first.ref, specs, vector)
    return base, specs


def _made_anew(
    rule: str | Rule,
    vectors: Sequence[Delta],
    settings: Mapping[str, Any],
    base: Base,
    specs: Mapping[str, TensorSpec],
    each: Mapping[str, Mapping[str, Any]],
    stats: Sequence[Weights],
) -> "Combined":
    known = RULES[rule] if isinstance(rule, str) else rule
    return Combined(known, vectors, settings, base, specs, each=each, stats=stats or None)


class Combined(Summand):
    """What a rule makes of several vectors.

    Attributes:
        rule, vectors, settings: which rule, of which vectors, with which parameters.
    """

    def __init__(
        self,
        rule: Rule,
        vectors: Sequence[Delta],
        settings: Mapping[str, Any],
        base: Base,
        specs: Mapping[str, TensorSpec],
        *,
        each: Mapping[str, Mapping[str, Any]],
        stats: Sequence[Weights] | None,
    ) -> None:
        ref = f"{rule.name}({', '.join(vector.ref for vector in vectors)})"
        recorded = json.loads(json.dumps({**settings, **({"each": each} if each else {})}, default=repr))
        start = base.weights if "_base" in rule.keywords else None
        params = (repr(sorted(settings.items())), repr(sorted(each.items())))
        inputs = (tuple(vectors), tuple(weights.identity for weights in stats or ()))
        super().__init__(
            ref,
            ("rule", rule.name, rule.function, *params, *inputs),
            specs,
            base,
            parts=(*vectors, *([] if start is None else [start]), *(stats or ())),
            recorded=VectorInfo(tuned=ref, rule={"name": rule.name, **recorded}),
        )
        self.splits = rule.by_rows
        self.rule, self.vectors, self.settings = rule, tuple(vectors), dict(settings)
        self._each, self._stats = each, tuple(stats or ())
        self._start = start
        self._room = ROOM if rule.scope == "matrix" else 0
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}
        self._of_tensor: dict[tuple[str, torch.dtype], Mapping[str, Any]] = {}
        self._of_model: dict[torch.dtype, Mapping[str, Mapping[str, Any]]] = {}
        self._locks: defaultdict[object, RLock] = defaultdict(RLock)
        wide = any(spec.code == "F64" for spec in specs.values())
        self._widest = torch.float64 if wide else torch.float32
        self._stacks: Callable[[torch.dtype], Stacks] = lru_cache(None)(self._make_stacks)

    def __reduce__(self) -> tuple[object, ...]:
        """Made anew of the vectors, without what is in memory; a rule of ours by its name."""
        known = self.rule.name in RULES and RULES[self.rule.name] is self.rule
        rule = self.rule.name if known else self.rule
        return _made_anew, (rule, self.vectors, self.settings, self.base, self.specs, self._each, self._stats)

    def changes(self, name: str) -> bool:
        return any(vector.terms_at(name) for vector in self.vectors)

    def in_rows(self, name: str) -> bool:
        """Whether the rule, and every vector, gives rows of this tensor by themselves."""
        rows = self.rule.goes_by_rows(name, self.specs[name].shape, self._settings_at(name))
        return rows and all(part.in_rows(there) for part, there in self.made_of(name))

    def own_bytes(self, name: str) -> int:
        spec = self.specs[name]
        whole = not self.in_rows(name)
        elements = block_size(spec.shape, whole=whole)
        if whole and len(spec.shape) == 2 and self.rule.square:
            elements = max(elements, spec.shape[1] ** 2)
        each, besides = self.rule.copies
        copies = each * len(self.vectors) + besides + (self._start is not None)
        return int(copies * spec.itemsize * elements)

    @property
    def frozen(self) -> bool:
        """Whether the rule is one of ours, which stays what it is, and the vectors do."""
        return self.rule.name in RULES and RULES[self.rule.name] is self.rule and super().frozen

    def prepare(self, precision: "torch.dtype | None" = None) -> None:
        """Take the passes over the whole model; each tensor is read once then, so none is kept."""
        self._room = 0
        super().prepare(precision)
        self._measure_model(precision or torch.float32)

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """The rule's tensor, computed from all vectors' tensors."""
        if self.in_rows(name) and (rows is None or rows.step in (None, 1)):
            return self._combine(name, rows, dtype)
        with self._locks[name]:
            made = self._kept.get((name, dtype))
            if made is None:
                made = self._combine(name, None, dtype)
                if made.nbytes <= self._room:
                    self._room -= made.nbytes
                    self._kept[name, dtype] = made
        return rows_of(made, rows)

    def _combine(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        settings = self.rule.accepted_parameters({**self._settings_at(name), **self._measure(name, dtype)})
        parts = []
        for stack, context in self._pieces(name, rows, dtype):
            made = self.rule.function(stack, **{**settings, **self.rule.accepted_parameters(context)})
            if made.shape != stack.shape[1:]:
                raise InputError(
                    f"rule {self.rule.name!r}: {name!r} has shape {tuple(made.shape)}, "
                    f"expected {tuple(stack.shape[1:])}"
                )
            parts.append(made)
        made = parts[0] if len(parts) == 1 else torch.cat(parts)
        return made.reshape(rows_shape(self.specs[name].shape, rows))

    def _settings_at(self, name: str) -> Mapping[str, Any]:
        return {**self.settings, **self._each.get(name, {})}

    def _pieces(self, name: str, rows: slice | None, dtype: "torch.dtype") -> Iterator[Piece]:
        """The deltas of all vectors and what goes with them, a block at a time if the rule goes by rows."""
        shape = rows_shape(self.specs[name].shape, rows)
        reading = Reading(name, rows, dtype)
        operands = [reading.joined(vector.terms_at(name)) for vector in self.vectors]
        deltas = DeltaStack(operands, dtype, shape)
        base = None if self._start is None else self._start.read(name, rows).to(dtype)
        stats = [self._read_stats(weights, name, rows) for weights in self._stats]
        whole = self.specs[name].shape
        first = 0 if rows is None else rows.indices(row_count(whole))[0]
        width = row_size(whole) if whole else 1
        for part in row_blocks(shape) if block_step(shape) and self.in_rows(name) else [None]:
            before = first + (0 if part is None else part.start)
            context: dict[str, Any] = {"_place": Place(name, before * width, len(whole))}
            if base is not None:
                context["_base"] = rows_of(base, part)
            if stats:
                context["_stats"] = [rows_of(t, part) if t is not None and alike else t for t, alike in stats]
            yield deltas.pairs(part) if self.rule.takes_pairs else deltas.stack(part), context

    def _read_stats(self, stats: Weights, name: str, rows: slice | None) -> "tuple[Tensor | None, bool]":
        """Statistics of a tensor, if any; whether of the same rows, as they have the shape of the deltas."""
        if name not in stats:
            return None, False
        alike = stats.spec(name).shape == self.specs[name].shape
        return stats.read(name, rows if alike else None), alike

    def _measure(self, name: str, dtype: "torch.dtype") -> Mapping[str, Any]:
        """What the rule wants to know first: of the whole model, and of this tensor."""
        of_model = self._measure_model(dtype).get(name, {})
        if self.rule.measure_tensor is None:
            return of_model
        with self._locks[name]:
            if (name, dtype) not in self._of_tensor:
                settings = self.rule.accepted_parameters({**self._settings_at(name), **of_model})
                of_tensor = self.rule.measure_tensor(self._stacks(dtype), name, **settings)
                self._of_tensor[name, dtype] = {**of_model, **(of_tensor or {})}
            return self._of_tensor[name, dtype]

    def _measure_model(self, precision: "torch.dtype") -> Mapping[str, Mapping[str, Any]]:
        """What the rule wants to know of the whole model, from a pass over it in the widest precision."""
        if self.rule.measure_model is None:
            return {}
        precision = torch.promote_types(precision, self._widest)
        with self._locks[None]:
            if precision not in self._of_model:
                stacks = self._stacks(precision)
                self._of_model[precision] = self.rule.measure_model(stacks, **self.settings) or {}
            return self._of_model[precision]

    def _make_stacks(self, dtype: "torch.dtype") -> Stacks:
        return Stacks(
            {name: spec.shape for name, spec in self.specs.items()},
            tuple(name for name in self.specs if self.changes(name)),
            lambda name: list(row_blocks(self.specs[name].shape)) if self.in_rows(name) else [None],
            lambda name, rows: self._pieces(name, rows, dtype),
            lambda name: self._each.get(name, {}),
            self._behind,
        )

    @cached_property
    def _behind(self) -> frozenset[str]:
        base = self.base.weights
        return names_behind(self.specs, None if base is None else base.folder)
