"""TATR without data: the sum, but for the entries on which tasks collide most."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import share
from taskvec.rules.quantiles import Entries, kth_largest
from taskvec.rules.rule import Rule, Stacks


def tatr(
    deltas: Tensor,
    *,
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.01,
    trim: Literal["tensor", "global"] = "global",
    _cut: float | None = None,
) -> Tensor:
    """Add the task vectors, but leave alone the entries that many tasks change much.

        Omega  = sum_{s != t} |tau_s| |tau_t|
        merged = sum_t tau_t where Omega is not above its (1 - drop) quantile, else 0

    Args:
        deltas: (task, *shape).
        drop: the fraction of entries that goes. Of n entries max(1, round((1 - drop) n)) stay, and those
            that equal the last of them.
        trim: whether a fraction of the whole task vector (``global``), or of each ``tensor``.

    Omega of the paper has gradients of unlabelled inputs for |tau_s|; this is its form without data. One
    task stays as it is. Copies of a vector are added.
    Source: Sun et al. 2025, arXiv:2501.15065 (TATR); the quantile over the whole vector is our reading.
    """
    total = deltas.sum(0)
    return total if _cut is None else torch.where(_conflict(deltas) > _cut, 0.0, total)


def measure_model(
    stacks: Stacks, *, drop: float, trim: str, **_: Any
) -> Mapping[str, Mapping[str, Any]] | None:
    """The quantile over all tensors."""
    entries = Entries.of_model(stacks)
    if trim == "tensor" or not entries.number:
        return None
    cut = _quantile(entries, drop)
    return {name: {"_cut": cut} for name in stacks.changed}


def measure_tensor(stacks: Stacks, name: str, *, drop: float, trim: str, **_: Any) -> Mapping[str, Any]:
    """The quantile of one tensor."""
    if trim == "global" or not stacks.numel(name):
        return {}
    return {"_cut": _quantile(Entries.of_tensor(stacks, name), drop)}


def _quantile(entries: Entries, drop: float) -> float:
    kept = share(entries.number, 1 - drop)
    of_all = entries.changed(lambda part: _conflict(part)[None])
    return float(kth_largest(of_all, entries.number - kept + 1))


def _conflict(deltas: Tensor) -> Tensor:
    """Omega, (task, *shape) -> (*shape), by sums that cannot cancel."""
    before, collected = deltas[0].abs(), torch.zeros_like(deltas[0])
    for delta in deltas[1:]:
        size = delta.abs()
        collected.addcmul_(size, before, value=2)
        before += size
    return collected


TATR = Rule(
    "tatr", tatr, "model", measure_model=measure_model, measure_tensor=measure_tensor, coefficient=0.3
)
