"""SCE: select, calculate, erase."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import Cut, located, share, trim
from taskvec.rules.quantiles import Entries, find
from taskvec.rules.rule import ANYWHERE, Place, Rule, Stacks


def sce(
    deltas: Tensor,
    *,
    select_topk: Annotated[float, Field(gt=0, le=1)] = 1.0,
    _place: Place = ANYWHERE,
    _selected: Cut | None = None,
    _shares: Sequence[float],
) -> Tensor:
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
    selected = _chosen(deltas, _selected, _place.first)
    weights = torch.tensor(_shares, dtype=deltas.dtype)
    majority = torch.where(selected.sum(0) >= 0, 1.0, -1.0)
    agreed = (selected.sign() == majority) * weights.reshape(-1, *[1] * majority.dim())
    total = agreed.sum(0)
    return (selected * agreed).sum(0) / torch.where(total == 0, 1.0, total)


def measure_tensor(stacks: Stacks, name: str, *, select_topk: float, **_: object) -> dict[str, Any]:
    """Which entries of a tensor are selected, and the weight of each task."""
    cut = None
    if select_topk < 1:
        entries = Entries.of_tensor(stacks, name, _variance)
        differing = sum(int(part.count_nonzero()) for part in entries.parts())
        if differing:
            ranked = find(entries, share(differing, select_topk))
            [cut] = located(entries, ranked, [each.ties for each in ranked])
    energy, first = torch.zeros(1, dtype=torch.float64), 0
    for deltas, _context in stacks.pieces_of(name):
        chosen = _chosen(deltas, cut, first)
        energy = energy + torch.stack([torch.linalg.vector_norm(d, dtype=torch.float64) ** 2 for d in chosen])
        first += deltas[0].numel()
    total = float(energy.sum())
    return {"_selected": cut, "_shares": (energy / total if total else energy).tolist()}


def _variance(deltas: Tensor, context: Mapping[str, Any] | None = None) -> Tensor:
    return deltas.var(0, correction=0, keepdim=True)


def _chosen(deltas: Tensor, cut: Cut | None, first: int) -> Tensor:
    return deltas if cut is None else deltas * (trim(_variance(deltas)[0], cut, first) != 0)


SCE = Rule("sce", sce, "tensor", measure_tensor=measure_tensor, copies=(5, 10))
