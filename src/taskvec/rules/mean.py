"""Weight averaging."""

from collections.abc import Sequence

from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import sum as addition
from taskvec.rules.rule import Rule


def mean(deltas: Tensor, *, weights: Sequence[float] | None = None) -> Tensor:
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
    total = sum(given)
    if abs(total) < 1e-8:
        raise InputError(f"weights: they add up to {total:g}, expected a sum that is not zero")
    return [weight / total for weight in given]


MEAN = Rule("mean", mean, "linear", coefficients=coefficients)
