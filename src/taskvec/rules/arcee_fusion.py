"""Arcee Fusion: only the changes that matter by a threshold of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.rules.quantiles import Entries, kth_largest
from taskvec.rules.rule import Rule, Stacks, present

_EPS = 1e-8


def arcee_fusion(deltas: Tensor, *, _base: Tensor | None = None, _bounds: Sequence[float] = ()) -> Tensor:
    """Keep the changes of high importance in each tensor, by a threshold from its quartiles; then add.

        importance = |tau| KL(softmax(base + tau) || softmax(base)),     softmax and KL along the last axis
        kept       = tau where importance >= median + 1.5 (Q3 - Q1), else 0

    Args:
        deltas: (task, *shape), each by itself.

    The quartiles are exact, where mergekit takes those of a sample of large tensors.
    Source: mergekit (arcee_fusion), for one vector.
    """
    base = present(_base)
    if not deltas.numel():
        return deltas.clone()
    limits = torch.tensor(_bounds, dtype=torch.float64).reshape(-1, *[1] * base.dim())
    return deltas * (_importance(deltas, {"_base": base}) >= limits)


def measure_tensor(stacks: Stacks, name: str, **_: object) -> dict[str, list[float]]:
    """The least importance that is kept, of each task."""
    number = stacks.numel(name)
    if not number:
        return {}
    entries = Entries.of_tensor(stacks, name, _importance)
    first, median, third = (  # the order statistics next below
        kth_largest(entries, number - int(q * (number - 1))) for q in (0.25, 0.5, 0.75)
    )
    return {"_bounds": (median + 1.5 * (third - first)).tolist()}


def _importance(deltas: Tensor, context: Mapping[str, Any]) -> Tensor:
    base = present(context.get("_base")).double()
    after = torch.softmax(base + deltas.double(), dim=-1) + _EPS
    before = torch.softmax(base, dim=-1) + _EPS
    change = after * (after / before).log()
    divergence = change.sum(-1, keepdim=True) if base.dim() else change
    return deltas.abs().double() * divergence.clamp(min=0)


def _in_rows(name: str, shape: Sequence[int], **_: object) -> bool:
    return len(shape) > 1


ARCEE_FUSION = Rule(
    "arcee_fusion",
    arcee_fusion,
    "tensor",
    stage="each",
    consumes="deltas, base",
    measure_tensor=measure_tensor,
    in_rows=_in_rows,
    copies=(20, 30),
    breaks=("scale",),
)
