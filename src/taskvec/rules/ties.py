"""TIES: trim, elect sign, merge what agrees."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules import sum as addition
from taskvec.rules.magnitude import Cut, Entries, count_equal, cuts_of, find, located, share
from taskvec.rules.magnitude import trim as trim_at
from taskvec.rules.rule import ANYWHERE, Place, Rule, Stacks

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
    _place: Place = ANYWHERE,
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
    factors = addition.coefficients(len(deltas), weights=weights)
    first = _place.first
    cuts = measure(Stacks.single(deltas), "", keep=keep, trim="tensor") if _cuts is None else {"_cuts": _cuts}
    flat = deltas.reshape(len(deltas), -1)
    merged = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    before, after = (factors, [1.0] * len(factors)) if weigh == "before" else ([1.0] * len(factors), factors)
    counts = before if weights is not None else [1.0] * len(factors)
    for place, (piece, target) in enumerate(
        zip(torch.split(flat, _PIECE, dim=1), torch.split(merged.reshape(-1), _PIECE), strict=True)
    ):
        at = first + place * _PIECE
        trimmed = [trim_at(entries, cut, at) for entries, cut in zip(piece, cuts["_cuts"], strict=True)]
        if merge == "max":
            target.copy_(_largest(torch.stack(trimmed), before, after, elect))
        else:
            target.copy_(_summed(trimmed, before, after, counts, elect, merge))
    return merged


def _summed(
    trimmed: Sequence[Tensor],
    before: Sequence[float],
    after: Sequence[float],
    counts: Sequence[float],
    elect: str,
    merge: str,
) -> Tensor:
    """Elect signs and add what agrees, or average it by ``counts``: what is positive and what is negative is
    gathered apart, and the sign says which of the two it is. ``trimmed`` is written into."""
    votes, plus, minus, pluses, minuses, work = torch.zeros(6, len(trimmed[0]), dtype=trimmed[0].dtype)
    for ballot, once, later, count in zip(trimmed, before, after, counts, strict=True):
        if once != 1.0:
            ballot.mul_(once)
        plus.add_(torch.clamp_min(ballot, 0, out=work), alpha=later)
        minus.add_(torch.clamp_max(ballot, 0, out=work), alpha=later)
        votes.add_(ballot if elect == "mass" else torch.sign(ballot, out=work))
        if merge == "mean":
            pluses.add_(torch.gt(ballot, 0, out=work), alpha=count)
            minuses.add_(torch.lt(ballot, 0, out=work), alpha=count)
    positive = votes.ge_(0)
    chosen = torch.lerp(minus, plus, positive, out=plus)
    if merge == "sum":
        return chosen
    total = torch.lerp(minuses, pluses, positive, out=pluses)
    return chosen.div_(total.add_(torch.eq(total, 0, out=work)))


def _largest(trimmed: Tensor, before: Sequence[float], after: Sequence[float], elect: str) -> Tensor:
    """Elect signs and take the entry of largest magnitude that agrees, (task, n) -> (n,)."""
    ballots = trimmed * torch.tensor(before, dtype=trimmed.dtype)[:, None]
    signs = ballots.sign()
    votes = (ballots if elect == "mass" else signs).sum(0)
    agree = signs == torch.where(votes < 0, -1.0, 1.0)
    chosen = ballots * agree * torch.tensor(after, dtype=trimmed.dtype)[:, None]
    return chosen.gather(0, chosen.abs().argmax(0, keepdim=True))[0]


def measure(stacks: Stacks, name: str, *, keep: float, trim: str, **_: Any) -> dict[str, list[Cut]]:
    """One cut for each task, if each tensor is trimmed by itself."""
    if trim == "global":
        return {}
    kept = share(stacks.numel(name), keep)
    return {"_cuts": cuts_of(stacks, name, kept) if kept else [Cut(math.inf)] * len(stacks.read(name, None))}


def prepare(stacks: Stacks, *, keep: float, trim: str, **_: Any) -> dict[str, dict[str, list[Cut]]] | None:
    """One cut for each task over all tensors, its ties dealt out in the order of the tensors."""
    if trim == "tensor":
        return None
    number = sum(stacks.numel(name) for name in stacks.changed)
    if not number:
        return None
    found = find(Entries(lambda: (stack for _, stack in stacks), number), share(number, keep))
    left = [one.ties for one in found]
    dealt: dict[str, dict[str, list[Cut]]] = {}
    for name in stacks.changed:
        here = [
            sum(count_equal(stack[task], one) for stack, _ in stacks.of(name))
            for task, one in enumerate(found)
        ]
        own = [replace(one, equal=equal) for one, equal in zip(found, here, strict=True)]
        cuts = located((stack for stack, _ in stacks.of(name)), own, left)
        dealt[name] = {"_cuts": cuts}
        left = [max(0, ties - equal) for ties, equal in zip(left, here, strict=True)]
    return dealt


TIES = Rule("ties", ties, "tensor", prepare=prepare, measure=measure)
