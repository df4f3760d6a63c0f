"""TSV-M: task singular vectors, whitened."""

import torch
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix, joined, svd
from taskvec.rules.rule import ANYWHERE, Place, Rule


def tsv(
    deltas: Tensor,
    *,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
    _rounded: torch.dtype | None = None,
) -> Tensor:
    """Keep the leading singular vectors of each task's matrices and make them orthogonal across tasks.

        Delta_t = U_t S_t V_t, the top k = max(1, int(min(m, n) / T)) components of each
        merged  = polar([U_1 .. U_T]) diag(S_1 .. S_T) polar([V_1; ..; V_T])

    Args:
        deltas: (task, m, n). Tensors of other than two axes are averaged.
        exclude: regular expression; matrices whose name it matches are averaged too.

    Components of singular value zero take no part. One task stays as it is.
    Cost: T + 2 decompositions a matrix.
    Source: Gargiulo et al. 2025, arXiv:2412.00081 (TSV-Merge).
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    top = max(1, min(deltas.shape[1:]) // len(deltas))
    parts = (svd(delta, given=_rounded) for delta in deltas)
    leading = [(u[:, :top], s[:top], v[:top]) for u, s, v in parts]
    u, s, v = joined(leading, _rounded)
    return (u * s) @ v


TSV = Rule("tsv", tsv, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15))
