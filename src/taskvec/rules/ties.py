"""TIES: trim, elect sign, merge what agrees."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from taskvec.rules import sum as addition
from taskvec.rules.magnitude import Cut, Entries, count_equal, cuts_of, find, located, share
from taskvec.rules.magnitude import trim as trim_at
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, Stacks, check_each

_PIECE = 1 << 15  # entries at a time: what is made on the way stays in cache


def ties(
    deltas: Tensor,
    *,
    keep: Fraction | Sequence[Fraction] = 0.2,
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
        keep: fraction of entries kept of each task, above 0 and up to 1; one for all tasks or one for each.
            Of n entries exactly max(1, round(keep n)), equal magnitudes in row-major order.
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
    ones = [1.0] * len(factors)
    before, after = (factors, ones) if weigh == "before" else (ones, factors)
    cuts = measure(Stacks.single(deltas), "", keep=keep, trim="tensor")["_cuts"] if _cuts is None else _cuts
    merged = torch.empty_like(deltas[0], memory_format=torch.contiguous_format)
    flat = deltas.reshape(len(deltas), -1)
    pieces = zip(torch.split(flat, _PIECE, dim=1), torch.split(merged.reshape(-1), _PIECE), strict=True)
    for place, (piece, target) in enumerate(pieces):
        ballots = torch.empty_like(piece, memory_format=torch.contiguous_format)
        for entries, cut, factor, ballot in zip(piece, cuts, before, ballots, strict=True):
            trim_at(entries, cut, _place.first + place * _PIECE, out=ballot)
            if factor != 1.0:
                ballot.mul_(factor)
        if merge == "max":
            target.copy_(_largest(ballots, after, elect))
        else:
            _average(ballots, before if merge == "mean" else None, after, elect, target)
    return merged


def _average(
    ballots: Tensor, counts: Sequence[float] | None, factors: Sequence[float], elect: str, out: Tensor
) -> None:
    """Elect signs, add what agrees times its factor, and divide by the counts of what agrees, if any.

    ``ballots`` (task, n) are written into.
    """
    votes = _total(
        ballots if elect == "mass" else ballots.sign(), [1.0] * len(ballots), torch.empty_like(out)
    )
    sign = votes.ge_(0).mul_(2).sub_(1)
    # Times the sign, what agrees is positive, and what does not becomes zero.
    agreeing = ballots.mul_(sign).relu_()
    _total(agreeing, factors, out).mul_(sign)
    if counts is not None:
        total = _total(agreeing.sign_(), counts, torch.empty_like(out))
        out.div_(total.add_(torch.eq(total, 0, out=sign)))


def _total(rows: Tensor, factors: Sequence[float], out: Tensor) -> Tensor:
    """``sum_t c_t row_t``, into ``out``."""
    if len(rows) > 1 and factors[0] == 1.0:
        torch.add(rows[0], rows[1], alpha=factors[1], out=out)
        rest = 2
    else:
        torch.mul(rows[0], factors[0], out=out)
        rest = 1
    for row, factor in zip(rows[rest:], factors[rest:], strict=True):
        out.add_(row, alpha=factor)
    return out


def _largest(ballots: Tensor, factors: Sequence[float], elect: str) -> Tensor:
    """Elect signs and take the entry of largest magnitude that agrees, (task, n) -> (n,)."""
    signs = ballots.sign()
    votes = (ballots if elect == "mass" else signs).sum(0)
    agree = signs == torch.where(votes < 0, -1.0, 1.0)
    chosen = ballots * agree * torch.tensor(factors, dtype=ballots.dtype)[:, None]
    return chosen.gather(0, chosen.abs().argmax(0, keepdim=True))[0]


def measure(
    stacks: Stacks, name: str, *, keep: float | Sequence[float], trim: str, **_: Any
) -> dict[str, list[Cut]]:
    """One cut for each task, if each tensor is trimmed by itself."""
    if trim == "global":
        return {}
    kept = _shares(stacks.numel(name), keep)
    nothing = kept == 0 or not stacks.numel(name)
    return {"_cuts": [Cut(math.inf)] * stacks.tasks(name) if nothing else cuts_of(stacks, name, kept)}


def prepare(
    stacks: Stacks, *, keep: float | Sequence[float], trim: str, **_: Any
) -> dict[str, dict[str, list[Cut]]] | None:
    """One cut for each task over all tensors, its ties dealt out in the order of the tensors."""
    if trim == "tensor":
        return None
    entries = Entries.all_of(stacks)
    if not entries.number:
        return None
    found = find(entries, _shares(entries.number, keep))
    left = [one.ties for one in found]
    dealt: dict[str, dict[str, list[Cut]]] = {}
    for name in stacks.changed:
        own = Entries.of(stacks, name)
        here = [0] * len(found)
        for part in own.parts():
            here = [n + count_equal(d, one) for n, d, one in zip(here, part, found, strict=True)]
        equal = [replace(one, equal=number, until=None) for one, number in zip(found, here, strict=True)]
        dealt[name] = {"_cuts": located(own, equal, left)}
        left = [max(0, ties - number) for ties, number in zip(left, here, strict=True)]
    return dealt


def _shares(entries: int, keep: float | Sequence[float]) -> int | list[int]:
    """How many entries are kept, of all tasks or of each."""
    if isinstance(keep, Sequence):
        return [share(entries, own) for own in keep]
    return share(entries, keep)


def _check(tasks: int | None, *, keep: float | Sequence[float], **_: Any) -> str | None:
    return check_each(tasks, keep=keep)


TIES = Rule("ties", ties, "tensor", prepare=prepare, measure=measure, check=_check)
