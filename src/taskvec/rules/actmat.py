"""ACTMat: the least-squares merge, the updates standing in for the inputs."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix
from taskvec.rules.rule import ANYWHERE, Place, Rule


def actmat(
    deltas: Tensor,
    *,
    cut: Annotated[float, Field(gt=0, lt=1)] = 1e-6,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
) -> Tensor:
    """The matrix nearest to all tasks' on their inputs, whose covariances the updates stand in for.

        merged = (sum_t Delta_t G_t) (sum_t G_t)^+,      G_t = Delta_t^T Delta_t

    Args:
        deltas: (task, out, in). Tensors of other than two axes are averaged.
        cut: eigenvalues of the sum of the G_t up to this share of the largest count as zero; what lies in
            their directions is averaged.
        exclude: regular expression; matrices whose name it matches are averaged too.

    It is ``wudi`` without weights and ridge: a task counts by the square of its size. One task stays as it
    is, copies count once, and tasks whose rows are orthogonal are added. Computed in float64.
    Cost: an eigendecomposition of (in, in) a matrix.
    Source: arXiv:2604.01329 (ACTMat); the authors' pseudo-inverse leaves zero where we average.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    mean = deltas.mean(0, dtype=torch.float64)
    # The square of the smallest float32 is none of float64's; that of large float64 would be infinite.
    size = float(deltas.abs().amax()) or 1.0
    read = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    wanted = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta in deltas:
        unit = delta.double() / size
        gram = unit.T @ unit
        read += gram
        wanted += (delta.double() - mean) @ gram
    # Seen from the mean, what is cut stays there.
    strength, inputs = torch.linalg.eigh(read)
    inverse = torch.where(strength > cut * strength[-1], strength.reciprocal(), 0.0)
    merged: Tensor = mean + (wanted @ inputs * inverse) @ inputs.T
    return merged.to(deltas.dtype)


ACTMAT = Rule("actmat", actmat, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15), square=True)
