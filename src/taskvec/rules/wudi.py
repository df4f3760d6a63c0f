"""WUDI: the least interference, in closed form."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix
from taskvec.rules.rule import ANYWHERE, Place, Rule


def wudi(
    deltas: Tensor,
    *,
    ridge: Annotated[float, Field(ge=0)] = 1e-4,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
) -> Tensor:
    """The matrix that differs least from each task's on the inputs which that task's update reads.

        merged = argmin_M sum_t |(M - Delta_t) Delta_t^T|^2 / |Delta_t|^2 + r |M - mean|^2
               = mean + (sum_t (Delta_t - mean) G_t) (G + r I)^-1
        G_t    = Delta_t^T Delta_t / |Delta_t|^2,   G = sum_t G_t,   r = ridge |G|_2

    Args:
        deltas: (task, out, in). Tensors of other than two axes are averaged.
        ridge: how strongly what the updates hardly read is drawn to their mean. 0 is the bare minimum, which
            is huge where the tasks' rows together are about as many as the inputs.
        exclude: regular expression; matrices whose name it matches are averaged too.

    Computed in float64. The published method takes 300 Adam steps towards this minimum from the sum and
    may stop far from it, so its published accuracies are not those of this rule; stopping early tames it as
    the ridge does.
    Cost: an eigendecomposition of (in, in) a matrix.
    Source: Cheng et al. 2025, arXiv:2503.08099 (WUDI-Merging); closed form and ridge: our derivation.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    mean = deltas.mean(0, dtype=torch.float64)
    read = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    wanted = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta in deltas:
        size = torch.linalg.vector_norm(delta, dtype=torch.float64)
        if size:
            unit = delta.double() / size
            gram = unit.T @ unit
            read += gram
            wanted += (delta.double() - mean) @ gram
    # Seen from the mean, what no update reads stays there.
    strength, inputs = torch.linalg.eigh(read)
    damped = strength + ridge * strength[-1]
    rounding = strength[-1] * len(read) * torch.finfo(read.dtype).eps
    inverse = torch.where(damped > rounding, damped.reciprocal(), 0.0)
    merged: Tensor = mean + (wanted @ inputs * inverse) @ inputs.T
    return merged.to(deltas.dtype)


WUDI = Rule("wudi", wudi, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15), square=True)
