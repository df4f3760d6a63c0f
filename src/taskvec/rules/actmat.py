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
    Cost: a Cholesky factor of (in, in) a matrix, or of (T out, T out) if that is smaller; where something
    is cut, an eigendecomposition.
    Source: arXiv:2604.01329 (ACTMat); the authors' pseudo-inverse leaves zero where we average.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    tasks, outputs, inputs = deltas.shape
    mean = deltas.mean(0, dtype=torch.float64)
    # The squares of entries as large as floats can be are none.
    size = float(deltas.abs().amax()) or 1.0
    system = _by_rows if tasks * outputs < inputs else _by_inputs
    gram, wanted, rows = system(deltas, mean, size)
    solved = _solved(gram, wanted, cut)
    # Seen from the mean, what is cut stays there.
    merged: Tensor = mean + (solved if rows is None else solved @ rows)
    return merged.to(deltas.dtype)


def _solved(gram: Tensor, wanted: Tensor, cut: float) -> Tensor:
    """``wanted`` gram^+, without the eigenvalues of ``gram`` up to ``cut`` of the largest."""
    shifted = gram.clone()
    shifted.diagonal().sub_(cut * torch.linalg.vector_norm(gram))  # which no eigenvalue exceeds
    _, cuts_something = torch.linalg.cholesky_ex(shifted)
    solved: Tensor
    if not cuts_something:  # as for most full matrices, and several times as fast
        solved = torch.cholesky_solve(wanted.T, torch.linalg.cholesky(gram)).T
    else:
        strength, found = torch.linalg.eigh(gram)
        inverse = torch.where(strength > cut * strength[-1], strength.reciprocal(), 0.0)
        solved = (wanted @ found * inverse) @ found.T
    return solved


def _by_inputs(deltas: Tensor, mean: Tensor, size: float) -> tuple[Tensor, Tensor, None]:
    """sum_t G_t, (in, in), and sum_t (Delta_t - mean) G_t, both over size^2."""
    gram = mean.new_zeros(mean.shape[1], mean.shape[1])
    wanted = torch.zeros_like(mean)
    for delta in deltas:
        unit = delta.double() / size
        gram.addmm_(unit.T, unit)
        wanted += torch.linalg.multi_dot([delta - mean, unit.T, unit])
    return gram, wanted, None


def _by_rows(deltas: Tensor, mean: Tensor, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same seen from all tasks' rows R, (T out, in): R R^T, [(Delta_t - mean) Delta_t^T ..] and R.

    R (R^T R)^+ = (R R^T)^+ R, and both have the same eigenvalues.
    """
    rows = deltas.double().flatten(0, 1) / size
    wanted = torch.cat([(delta - mean) @ (delta.double() / size).T for delta in deltas], dim=1)
    return rows @ rows.T, wanted, rows


ACTMAT = Rule("actmat", actmat, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15), square=True)
