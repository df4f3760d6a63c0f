"""WUDI: the least interference, in closed form."""

import torch
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix
from taskvec.rules.rule import ANYWHERE, Place, Rule


def wudi(deltas: Tensor, *, exclude: str | None = None, _place: Place = ANYWHERE) -> Tensor:
    """The matrix that differs least from each task's on the inputs which that task's update reads.

        merged = argmin_M sum_t |(M - Delta_t) Delta_t^T|^2 / |Delta_t|^2
               = (sum_t Delta_t G_t) (sum_t G_t)^+,      G_t = Delta_t^T Delta_t / |Delta_t|^2

    Args:
        deltas: (task, out, in). Tensors of other than two axes are averaged; zero matrices take no part.
        exclude: regular expression; matrices whose name it matches are averaged too.

    Computed in float64. The published method takes 300 Adam steps towards this minimum from the sum and
    may stop far from it, so its published accuracies are not those of this rule.
    Cost: an eigendecomposition of (in, in) a matrix.
    Source: Cheng et al. 2025, arXiv:2503.08099 (WUDI-Merging); closed form: our derivation.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    read = torch.zeros(deltas.shape[2], deltas.shape[2], dtype=torch.float64)
    wanted = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta in deltas:
        size = torch.linalg.vector_norm(delta, dtype=torch.float64)
        if size:
            unit = delta.double() / size
            gram = unit.T @ unit
            read += gram
            wanted += size * (unit @ gram)
    merged: Tensor = wanted @ torch.linalg.pinv(read, hermitian=True)
    return merged.to(deltas.dtype)


WUDI = Rule("wudi", wudi, "matrix", in_rows=in_rows, check=check_pattern)
