"""CART: the average, and what leads each task away from it."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import basis, check_pattern, in_rows, is_matrix
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule


def cart(
    deltas: Tensor,
    *,
    keep: Fraction = 0.5,
    strength: Annotated[float, Field(ge=0)] = 0.5,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Average the task vectors and add the leading directions in which each differs from the average.

        merged = mean + strength sum_t lowrank(Delta_t - mean),      mean = sum_t Delta_t / T

    Args:
        deltas: (task, m, n). Tensors of other than two axes are averaged.
        keep: fraction of the min(m, n) directions that are kept of each task: max(1, round(keep min(m, n))).
        strength: of what is added; 0 is the mean. To be tuned with ``keep`` on validation data.
        exclude: regular expression; matrices whose name it matches are averaged too.

    One task stays as it is, and copies count once. With two tasks, or everything kept, what is added
    cancels, and the mean is left.
    Computed in float64.
    Cost: T eigendecompositions of the shorter side a matrix.
    Source: Choi et al. 2024, arXiv:2412.12153 (CART); the defaults are those of a public re-implementation.
    """
    mean = deltas.mean(0)
    if not is_matrix(deltas, exclude, _place):
        return mean
    kept = max(1, round(keep * min(mean.shape)))
    merged = mean.double().clone()
    for delta in deltas:
        apart = delta.double() - mean
        leading = basis(apart)[:, :kept]
        wide = mean.shape[0] <= mean.shape[1]
        part = leading @ (leading.T @ apart) if wide else (apart @ leading) @ leading.T
        merged += strength * part
    return merged.to(deltas.dtype)


CART = Rule("cart", cart, "matrix", in_rows=in_rows, check=check_pattern, copies=(2, 40))
