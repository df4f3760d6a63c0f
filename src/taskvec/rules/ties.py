"""TIES: trim, elect sign, merge what agrees."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules import sum as addition
from taskvec.rules.magnitude import Cut, count_equal, find_cuts, share
from taskvec.rules.magnitude import trim as trim_at
from taskvec.rules.rule import Rule, Stacks

_PIECE = 1 << 17  # entries at a time: what is made on the way stays in cache


def ties(
    deltas: Tensor,
    *,
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2,
    trim: Literal["tensor", "global"] = "tensor",
    elect: Literal["mass", "count"] = "mass",
    merge: Literal["mean", "sum", "max"] = "mean",
    weights: Sequence[float] | None = None,
    weigh: Literal["before", "after"] = "before",
    _cuts: Sequence[Cut] | None = None,
) -> Tensor:
    """Keep the largest entries of each task, elect a sign, merge those that agree with it.

        trimmed_t = tau_t where |tau_t| is among the largest, else 0
        sign      = sgn(sum_t w_t trimmed_t)
        merged    = mean of w_t trimmed_t over the tasks whose entry has that sign

    Args:
        deltas: (task, *shape).
        keep: fraction of entries kept of each task, above 0 and up to 1. Of n entries exactly
            max(1, round(keep n)), equal magnitudes in row-major order.
        trim: whether a fraction of each ``tensor``, or of the whole task vector (``global``, as in the
            paper). The same when there is only one tensor.
        elect: the sign of the sum (``mass``), or of the number of positive minus negative (``count``).
        merge: ``mean``, ``sum``, or the entry of largest magnitude (``max``).
        weights: one for each task, 1 by default.
        weigh: multiply by the weights ``before`` the election, and divide by the weights that agree; or
            ``after`` it, and divide by their number.

    A sum of exactly zero elects plus. The authors' code elects the majority sign of the whole vector there,
    and keeps one entry more.
    Source: Yadav et al. 2023, arXiv:2306.01708; ``weigh``: mergekit (before), PEFT (after).
    """
    coefficients = addition.coefficients(len(deltas), weights=weights)
    factors = torch.tensor(coefficients, dtype=deltas.dtype)[:, None] if weights is not None else None
    cuts = _cuts_within(deltas, keep) if _cuts is None else _cuts
    merged = torch.zeros_like(deltas[0]).reshape(-1)
    if not cuts:
        return merged.reshape(deltas[0].shape)
    flat = deltas.reshape(len(deltas), -1)
    for piece, target in zip(torch.split(flat, _PIECE, dim=1), torch.split(merged, _PIECE), strict=True):
        trimmed, cuts = zip(*map(trim_at, piece, cuts), strict=True)
        target.copy_(_merge(torch.stack(trimmed), factors, elect, merge, weigh))
    return merged.reshape(deltas[0].shape)


def _merge(trimmed: Tensor, factors: Tensor | None, elect: str, merge: str, weigh: str) -> Tensor:
    """Elect signs and merge what agrees, (task, n) -> (n,); ``factors`` are (task, 1) or all 1."""
    weighted = trimmed if factors is None else trimmed * factors
    ballots = weighted if weigh == "before" else trimmed
    signs = ballots.sign()
    votes = (ballots if elect == "mass" else signs).sum(0)
    agree = signs == torch.where(votes < 0, -1.0, 1.0)
    chosen = weighted * agree
    if merge == "max":
        return chosen.gather(0, chosen.abs().argmax(0, keepdim=True))[0]
    if merge == "sum":
        return chosen.sum(0)
    counted = agree * factors if factors is not None and weigh == "before" else agree
    total = counted.sum(0, dtype=trimmed.dtype)
    return chosen.sum(0) / torch.where(total == 0, 1.0, total)


def prepare(stacks: Stacks, *, keep: float, trim: str, **_: Any) -> dict[str, dict[str, list[Cut]]] | None:
    """One cut for each task over all tensors, its ties dealt out in the order of the tensors."""
    if trim == "tensor":
        return None
    kept = share(sum(stack[0].numel() for _, stack in stacks), keep)
    if not kept:
        return {name: {"_cuts": []} for name in stacks.changed}
    whole = find_cuts(lambda: (stack for _, stack in stacks), kept)
    left = [cut.ties for cut in whole]
    dealt: dict[str, dict[str, list[Cut]]] = {}
    for name, stack in stacks:
        equal = [count_equal(delta, cut) for delta, cut in zip(stack, whole, strict=True)]
        here = [min(n, there) for n, there in zip(left, equal, strict=True)]
        left = [n - used for n, used in zip(left, here, strict=True)]
        each = zip(whole, here, equal, strict=True)
        dealt[name] = {"_cuts": [Cut(cut.threshold, ties, there) for cut, ties, there in each]}
    return dealt


def _cuts_within(deltas: Tensor, keep: float) -> list[Cut]:
    kept = share(deltas[0].numel(), keep)
    return find_cuts(lambda: [deltas], kept) if kept else []


TIES = Rule("ties", ties, "tensor", prepare=prepare)
