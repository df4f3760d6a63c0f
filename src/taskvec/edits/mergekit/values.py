"""Parameters of single tensors, and vectors combined by them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


@dataclass(frozen=True)
class Values:
    """The parameters of one tensor: those for all models, and those of each, in the order of the vectors."""

    shared: Mapping[str, Any]
    own: tuple[Mapping[str, Any], ...]


Table = Mapping[str, Values]
"""Values by tensor name."""


def per_tensor(
    rule: str, vectors: Sequence["TaskVector"], params: Mapping[str, Mapping[str, Any]]
) -> "TaskVector":
    """``combine`` with parameters for each tensor; those that most tensors have are given once."""
    from taskvec.vectors import combine

    common = _most_common(list(params.values()))
    each = {name: own for name, own in params.items() if own != common}
    return combine(rule, vectors, each=each or None, **common)


def scaled(vector: "TaskVector", factors: Mapping[str, float]) -> "TaskVector":
    """Each tensor times its own factor."""
    common = _most_common(list(factors.values()))
    if all(factor == common for factor in factors.values()):
        return common * vector  # type: ignore[no-any-return]
    return vector.scaled(factors)


def weighted(vectors: Sequence["TaskVector"], weights: Mapping[str, Sequence[float]]) -> "TaskVector":
    """The sum of the vectors, each tensor of each with its own weight."""
    terms = (
        scaled(vector, {name: own[place] for name, own in weights.items()})
        for place, vector in enumerate(vectors)
    )
    first, *others = terms
    for other in others:
        first = first + other
    return first


def _most_common(values: Sequence[Any]) -> Any:
    counts: dict[str, list[Any]] = {}
    for value in values:
        counts.setdefault(repr(value), []).append(value)
    return max(counts.values(), key=len)[0]


def added(vectors: Sequence["TaskVector"], table: Table) -> "TaskVector":
    """The weighted sum of the vectors."""
    return weighted(vectors, {name: shares(values) for name, values in table.items()})


def shares(values: Values) -> list[float]:
    """lambda w_t, divided by the sum of the weights if ``normalize`` says so and they have one."""
    weights = [own["weight"] for own in values.own]
    total = sum(weights) if values.shared["normalize"] else 1.0
    factor = values.shared.get("lambda", 1.0) / (total if abs(total) >= 1e-8 else 1.0)
    return [weight * factor for weight in weights]
