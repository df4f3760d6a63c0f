"""SVC: what several tasks counted together is counted once."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import basis, check_pattern, in_rows, is_matrix
from taskvec.rules.pairs import Deltas, stacked
from taskvec.rules.rule import ANYWHERE, Place, Rule

_ROUNDINGS = 16
"""How far off, in units of rounding, singular vectors may be."""


def svc(
    merged: Tensor,
    *,
    least: Annotated[float, Field(gt=0)] = 0.1,
    exclude: str | None = None,
    _given: Deltas,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Calibrate the singular values of what was merged, so that shared directions are not over-counted.

        merged = U diag(S) V,      a_r = u_r^T merged,      a_r^t = u_r^T Delta_t
        s_r^t  = <a_r, a_r^t> / |a_r^t|^2,      gamma_r = T / sum_t max(least, s_r^t)
        result = U diag(gamma S) V

    Args:
        merged: (m, n). Tensors of other than two axes stay as they were merged.
        least: the smallest s_r^t that counts, and what counts where a task has nothing in a direction; no
            direction is made more than 1 / least times as large.
        exclude: regular expression; matrices whose name it matches stay as they were merged too.

    Delta_t are the task vectors that the chain was given. One task stays as it is after ``sum``, and copies
    of one vector, summed, give that vector. A factor of what was merged cancels, unless ``least`` counts.
    Where singular values are equal, as after ``iso_c``, the singular vectors are arbitrary.
    Cost: an eigendecomposition of the shorter side and T products a matrix, in float64.
    Source: arXiv:2602.05536 (singular value calibration), as in FusionBench.
    """
    given = stacked(_given)
    if not is_matrix(given, exclude, _place) or not is_matrix(merged[None], exclude, _place):
        return merged
    matrix = merged.double()
    found = basis(matrix)
    wide = matrix.shape[0] <= matrix.shape[1]
    left, right = (found, found.T @ matrix) if wide else (matrix @ found, found.T)
    return ((left * _factors(left, matrix, given, least)) @ right).to(merged.dtype)


def _factors(left: Tensor, merged: Tensor, given: Tensor, least: float) -> Tensor:
    """gamma_r of the directions ``left`` (m, r), which may be of any length."""
    computing = _ROUNDINGS * max(merged.shape) * torch.finfo(merged.dtype).eps
    rounding = max(torch.finfo(given.dtype).eps, computing) * torch.linalg.vector_norm(left, dim=0)
    whole, shares = left.T @ merged, torch.zeros_like(left[0])
    for delta in given:
        part = left.T @ delta.double()
        length = torch.linalg.vector_norm(part, dim=1)
        share = (whole / length[:, None] * (part / length[:, None])).sum(1)  # squares may be no floats
        present = length > rounding * torch.linalg.vector_norm(delta, dtype=torch.float64)
        shares += torch.where(present, share, least).clamp(min=least)
    return len(given) / shares


SVC = Rule("svc", svc, "matrix", stage="after", in_rows=in_rows, check=check_pattern, copies=(1, 9))
