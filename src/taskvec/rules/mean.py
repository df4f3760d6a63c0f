"""Weight averaging."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.errors import InputError
from taskvec.rules import sum as addition
from taskvec.rules.rule import Rule

if TYPE_CHECKING:
    from torch import Tensor


def mean(deltas: "Tensor", *, weights: Sequence[float] | None = None) -> "Tensor":
    """Average the task vectors, which averages the fine-tuned weights.

        merged = sum_t w_t tau_t / sum_t w_t

    Args:
        deltas: (task, *shape).
        weights: one for each task, equal by default; their sum must not vanish.

    Equal to ``sum`` scaled by 1 / T when the weights are equal.
    """
    return addition.weighted(deltas, coefficients(len(deltas), weights=weights))


def coefficients(tasks: int, *, weights: Sequence[float] | None = None) -> list[float]:
    """The weights divided by their sum.

    Raises: InputError if the sum is smaller than 1e-8, or for a wrong number of weights.
    """
    given = addition.coefficients(tasks, weights=weights)
    complaint = check_sum(tasks, weights=given)
    if complaint:
        raise InputError(complaint)
    total = sum(given)
    return [weight / total for weight in given]


def check_sum(tasks: int | None, *, weights: Sequence[float] | None, **_: object) -> str | None:
    """What is wrong with weights that are divided by their sum."""
    total = 1.0 if weights is None else sum(weights)
    return f"weights add up to {total:g}, expected a sum that is not zero" if abs(total) < 1e-8 else None


MEAN = Rule("mean", mean, "linear", coefficients=coefficients, check=check_sum)
