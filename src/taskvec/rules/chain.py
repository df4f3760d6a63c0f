"""Rules one after the other: each vector is changed, all are merged, what is merged is changed."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any, get_args

from taskvec.errors import InputError
from taskvec.registry import Registry
from taskvec.rules.pairs import Deltas, stacked
from taskvec.rules.rule import Consumes, Piece, Rule, Scope, Stacks, Stage

if TYPE_CHECKING:
    from torch import Tensor

_STATED: Mapping[tuple[str, ...], float] = {("dare", "ties"): 0.5}
"""The coefficients of chains whose source has another than that of their last rule."""

_OF_CHAINS = ("_given", "_rounded")
"""What a chain tells its rules: the deltas that it was given, and their dtype."""


class Rules(Registry[Rule]):
    """Rules by name, and chains of rules: ``dare+ties``, ``breadcrumbs+ties+lines``, ``tsv+svc``.

    A chain has at most one rule that changes each vector, one that merges and any that come after, in this
    order; where none merges, ``sum`` does. Its parameters are those of its rules: two that have a name in
    common have to be the same, like ``exclude``.

    Raises: UnknownName, with the nearest name; InputError for a chain in another order.
    """

    @cached_property
    def _chains(self) -> dict[str, Rule]:
        return {}

    def __getitem__(self, name: str) -> Rule:
        if name not in self._chains:
            parts = [super(Rules, self).__getitem__(part) for part in name.split("+")]
            self._chains[name] = self.completed(name, parts)
        return self._chains[name]

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self[name])
        except (LookupError, InputError):
            return False

    def completed(self, name: str, parts: Sequence[Rule]) -> Rule:
        """The rule that ``parts`` make, one after the other; a single one that merges as it is."""
        stages = [part.stage for part in parts]
        in_order = stages == sorted(stages, key=get_args(Stage).index)
        repeated = len({part.name if part.stage == "after" else part.stage for part in parts}) < len(parts)
        if repeated or not in_order:
            listed = ", ".join(f"{part.name} ({part.stage})" for part in parts)
            raise InputError(
                f"rule {name!r}: {listed}, expected at most one rule each, merge and after, in this order; "
                "of after, several different ones"
            )
        if "merge" not in stages:
            parts = sorted(
                [*parts, super().__getitem__("sum")], key=lambda part: get_args(Stage).index(part.stage)
            )
        return parts[0] if len(parts) == 1 else chained(name, parts)


def chained(name: str, parts: Sequence[Rule]) -> Rule:
    """One rule of several, the first of them on the deltas, the next on what it gives, and so on.

    Raises: InputError if two of them have a parameter of the same name.
    """
    # What it measures by the vectors magnifies the rounding of what was merged.
    looks_back = any("_given" in part.keywords for part in parts)
    keywords: dict[str, inspect.Parameter] = {}
    for part in parts:
        twice = sorted(
            key for key in part.parameters() if part.keywords[key] != keywords.get(key, part.keywords[key])
        )
        if twice:
            raise InputError(f"rule {name!r}: two of its rules have the parameter {twice[0]!r}; chain others")
        keywords.update({key: value for key, value in part.keywords.items() if key not in _OF_CHAINS})

    def function(deltas: Deltas, **values: Any) -> "Tensor":
        made = stacked(deltas).double() if looks_back else deltas
        told = dict(zip(_OF_CHAINS, (deltas, deltas.dtype), strict=True))
        for part in parts:
            made = part.function(made, **part.accepted_parameters({**values, **told}))
        return stacked(made).to(deltas.dtype)

    def measure_model(stacks: Stacks, **settings: Any) -> Mapping[str, Mapping[str, Any]] | None:
        measured: dict[str, dict[str, Any]] = {tensor: {} for tensor in stacks.changed}
        seen = _remembering(stacks)
        for part in parts:
            if part.measure_model is not None:
                asked = part.accepted_parameters(settings)
                made = part.measure_model(seen, **asked, _given=stacks) or {}
                for tensor, values in made.items():
                    measured[tensor].update(values)
            seen = _after(part, seen, partial(_values, part, seen, settings, measured))
        return measured if any(measured.values()) else None

    def measure_tensor(stacks: Stacks, tensor: str, **settings: Any) -> Mapping[str, Any]:
        measured: dict[str, Any] = {}
        seen = _remembering(stacks)
        for part in parts:
            measured |= _measured(part, seen, tensor, settings)
            seen = _after(part, seen, {tensor: {**settings, **measured}}.__getitem__)
        return measured

    def in_rows(tensor: str, shape: Sequence[int], **settings: Any) -> bool:
        return all(part.goes_by_rows(tensor, shape, settings) for part in parts)

    def check(tasks: int | None, **settings: Any) -> str | None:
        complaints = (part.check(tasks, **part.accepted_parameters(settings)) for part in parts if part.check)
        return next(filter(None, complaints), None)

    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what inspect.signature reads
        [inspect.Parameter("deltas", inspect.Parameter.POSITIONAL_OR_KEYWORD), *keywords.values()]
    )
    named = [part for part in parts if part.name in name.split("+")]
    function.__doc__ = "\n\n".join(part.description for part in named)
    scopes: tuple[Scope, ...] = get_args(Scope)
    consumed: tuple[Consumes, ...] = get_args(Consumes)
    merging = next(part for part in parts if part.stage == "merge")
    return Rule(
        name,
        function,
        max((part.scope for part in parts), key=scopes.index),
        consumes=max((part.consumes for part in parts), key=consumed.index),
        tasks=merging.tasks,
        measure_model=measure_model if any(part.measure_model for part in parts) else None,
        measure_tensor=measure_tensor if any(part.measure_tensor for part in parts) else None,
        in_rows=None if all(part.by_rows for part in parts) else in_rows,
        check=check if any(part.check for part in parts) else None,
        stages=tuple(parts),
        takes_pairs=parts[0].takes_pairs,
        square=any(part.square for part in parts),
        breaks=tuple(law for part in parts for law in part.breaks),
        coefficient=_STATED.get(tuple(part.name for part in parts), parts[-1].coefficient),
        copies=(
            looks_back + (1 + looks_back) * max(part.copies[0] for part in parts),
            (1 + looks_back) * max(part.copies[1] for part in parts),
        ),
    )


def _remembering(stacks: Stacks) -> Stacks:
    """The stacks, with what the chain was given at hand for rules that come after."""

    def pieces(name: str, rows: slice | None) -> Iterator[Piece]:
        for stack, context in stacks.pieces(name, rows):
            yield stack, {**context, "_given": stack}

    return replace(stacks, pieces=pieces)


def _after(part: Rule, seen: Stacks, values: Callable[[str], Mapping[str, Any]]) -> Stacks:
    """What ``part`` makes of the stacks it sees, computed when read; ``values`` are those of a tensor."""
    known = cache(values)

    def pieces(name: str, rows: slice | None) -> Iterator[Piece]:
        for stack, context in seen.pieces(name, rows):
            yield part.function(stack, **part.accepted_parameters({**known(name), **context})), context

    return replace(seen, pieces=pieces)


def _values(
    part: Rule,
    seen: Stacks,
    settings: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Any]],
    name: str,
) -> Mapping[str, Any]:
    """The parameters of ``part`` at one tensor, and what it measures there."""
    values = {**settings, **measured[name], **seen.overrides(name)}
    return {**values, **_measured(part, seen, name, values)}


def _measured(part: Rule, seen: Stacks, name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    if part.measure_tensor is None:
        return {}
    return part.measure_tensor(seen, name, **part.accepted_parameters(values)) or {}
