"""SCE: select, calculate, erase."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import find_cuts, share, trim
from taskvec.rules.rule import Rule


def sce(deltas: Tensor, *, select_topk: Annotated[float, Field(gt=0, le=1)] = 1.0) -> Tensor:
    """Select entries on which tasks differ, weigh tasks by their energy, erase minority signs.

        select:    the entries of largest variance over the tasks, the others become 0
        calculate: w_t = |tau_t|^2 / sum_s |tau_s|^2 in this tensor
        erase:     merged = sum w_t tau_t / sum w_t over the tasks with the sign of sum_t tau_t

    Args:
        deltas: (task, *shape).
        select_topk: fraction of the entries of each tensor that are selected, of those whose variance is not
            zero; at least one. 1 selects all, and so does a tensor on which no tasks differ.

    Source: Wan et al. 2024, arXiv:2408.07990 (FuseChat), as in mergekit.
    """
    selected = deltas if select_topk == 1 else deltas * _varied(deltas, select_topk)
    energy = torch.stack([torch.linalg.vector_norm(d, dtype=torch.float64) ** 2 for d in selected])
    weights = (energy / energy.sum() if energy.sum() else energy).to(deltas.dtype)
    majority = torch.where(selected.sum(0) >= 0, 1.0, -1.0)
    agreed = (selected.sign() == majority) * weights.reshape(-1, *[1] * majority.dim())
    total = agreed.sum(0)
    return (selected * agreed).sum(0) / torch.where(total == 0, 1.0, total)


def _varied(deltas: Tensor, fraction: float) -> Tensor:
    variance = deltas.var(0, correction=0)
    differing = int(variance.count_nonzero())
    if not differing:
        return torch.ones_like(variance)
    [cut] = find_cuts(lambda: [variance[None]], share(differing, fraction))
    return trim(variance, cut)[0] != 0


SCE = Rule("sce", sce, "tensor")
