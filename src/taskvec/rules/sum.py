"""Task arithmetic."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.errors import InputError
from taskvec.rules.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


def sum_(deltas: "Tensor", *, weights: Sequence[float] | None = None) -> "Tensor":
    """Add the task vectors: task arithmetic.

        merged = sum_t w_t tau_t

    Args:
        deltas: (task, *shape).
        weights: one for each task; 1 by default. A negative one makes the model forget.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    return weighted(deltas, coefficients(len(deltas), weights=weights))


def coefficients(tasks: int, *, weights: Sequence[float] | None = None) -> list[float]:
    """The weight of each task.

    Raises: InputError unless there is one weight for each task.
    """
    if weights is None:
        return [1.0] * tasks
    if len(weights) != tasks:
        raise InputError(f"weights: {len(weights)} values, expected {tasks}, one for each task vector")
    return list(map(float, weights))


def weighted(deltas: "Tensor", weights: Sequence[float]) -> "Tensor":
    """``sum_t w_t delta_t``, (task, *shape) -> (*shape)."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


SUM = Rule("sum", sum_, "linear", coefficients=coefficients, coefficient=0.3)
