"""Arcee Fusion: only the changes that matter by a threshold of their own."""

import torch
from torch import Tensor

from taskvec.rules.magnitude import kth_largest
from taskvec.rules.rule import Rule, present

_EPS = 1e-8


def arcee_fusion(deltas: Tensor, *, _base: Tensor | None = None) -> Tensor:
    """Keep the changes of high importance in each tensor, by a threshold from its quartiles; then add.

        importance = |tau| KL(softmax(base + tau) || softmax(base)),     softmax and KL along the last axis
        kept       = tau where importance >= median + 1.5 (Q3 - Q1), else 0

    Args:
        deltas: (task, *shape), each by itself.

    The quartiles are exact, where mergekit takes those of a sample of large tensors.
    Source: mergekit (arcee_fusion), for one vector.
    """
    base = present(_base)
    return torch.stack([_kept(delta, base) for delta in deltas])


def _kept(delta: Tensor, base: Tensor) -> Tensor:
    if not delta.numel():
        return delta.clone()
    after = torch.softmax(base.double() + delta.double(), dim=-1) + _EPS
    before = torch.softmax(base.double(), dim=-1) + _EPS
    divergence = (after * (after / before).log()).sum(-1, keepdim=base.dim() > 0).clamp(min=0)
    importance = delta.abs().double() * divergence
    first, median, third = (_quantile(importance, q) for q in (0.25, 0.5, 0.75))
    return delta * (importance >= median + 1.5 * (third - first))


def _quantile(tensor: Tensor, q: float) -> float:
    """The order statistic next below."""
    entries = tensor.numel()
    return float(kth_largest(lambda: [tensor[None]], entries - int(q * (entries - 1)))[0])


ARCEE_FUSION = Rule("arcee_fusion", arcee_fusion, "tensor", stage="each", consumes="deltas, base")
