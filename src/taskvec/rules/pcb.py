"""PCB: parameter competition balancing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import share
from taskvec.rules.quantiles import Entries, kth_largest
from taskvec.rules.rule import Rule, Stacks

_TAIL = 1e-4


@dataclass(frozen=True)
class Balance:
    """Where one task's magnitudes and scores begin and end, over all entries that compete.

    Attributes:
        low: magnitudes are clamped to what is between ``low`` and ``high``.
        high: see ``low``.
        cut: scores up to here count as none.
        top: the largest score.
    """

    low: float
    high: float
    cut: float
    top: float


def pcb(
    deltas: Tensor,
    *,
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.05,
    trim: Literal["tensor", "global"] = "global",
    _balance: Sequence[Balance] = (),
) -> Tensor:
    """Average the tasks entry by entry, weighted by how they compete within and between tasks.

        a_t    = |tau_t| clamped to its 1e-4 and 1 - 1e-4 quantiles
        beta_t = exp(T minmax(a_t)^2) tanh(tau_t sum_s tau_s)
        s_t    = minmax(beta_t, everything below its top fraction set to the cut)
        merged = sum_t sgn(tau_t) a_t s_t / sum_t s_t

    Args:
        deltas: (task, *shape).
        ratio: the top fraction of scores of each task that has a say.
        trim: whether quantiles, extremes and the top fraction are those of the whole task vector
            (``global``, as in the authors' code) or of each ``tensor``.

    One task does not stay as it is: its top entries do, clamped. Quantiles are the nearest order statistics.
    The scores are computed up to the factor exp(-T), which minmax does not see and which keeps any number of
    tasks finite. Not homogeneous, because of tanh. The paper recommends a scale of about 1.2.
    Source: Du et al. 2024, arXiv:2410.02396 (the form of the authors' code).
    """
    if not _balance:  # no task changes anything here
        return torch.zeros_like(deltas[0])
    total = deltas.sum(0)
    weighed, weights = torch.zeros_like(total), torch.zeros_like(total)
    for delta, its in zip(deltas, _balance, strict=True):
        score = _scores(delta, total, its.low, its.high, len(deltas)).clamp(min=its.cut)
        spread = its.top - its.cut
        weight = (score - its.cut) / spread if spread > 0 else torch.full_like(score, float(its.top > 0))
        weighed += delta.sign() * delta.abs().clamp(its.low, its.high) * weight
        weights += weight
    return weighed / weights.clamp(min=1e-12)


def measure_model(
    stacks: Stacks, *, ratio: float, trim: str, **_: Any
) -> Mapping[str, Mapping[str, Any]] | None:
    """The quantiles and extremes of each task."""
    entries = Entries.of_model(stacks)
    if trim == "tensor" or not entries.number:
        return None
    whole = _balances(entries, ratio)
    return {name: {"_balance": whole} for name in stacks.changed}


def measure_tensor(stacks: Stacks, name: str, *, ratio: float, trim: str, **_: Any) -> Mapping[str, Any]:
    """The quantiles and extremes of each task, of one tensor by itself."""
    if trim == "global" or not stacks.numel(name):
        return {}
    return {"_balance": _balances(Entries.of_tensor(stacks, name), ratio)}


def _balances(entries: Entries, ratio: float) -> list[Balance]:
    number = entries.number
    tail = round(_TAIL * (number - 1))
    sizes = entries.changed(torch.abs)
    low, high = (kth_largest(sizes, rank).tolist() for rank in (number - tail, 1 + tail))

    def scored(part: Tensor) -> Tensor:
        total = part.sum(0)
        each = zip(part, low, high, strict=True)
        return torch.stack([_scores(delta, total, lo, hi, len(part)) for delta, lo, hi in each])

    scores = entries.changed(scored)
    cut = kth_largest(scores, min(number, share(number, ratio) + 1)).tolist()
    highest = [part.reshape(len(part), -1).amax(1) for part in scores.parts() if part.numel()]
    top = torch.stack(highest).amax(0).tolist()
    return [Balance(*numbers) for numbers in zip(low, high, cut, top, strict=True)]


def _scores(delta: Tensor, total: Tensor, low: float, high: float, tasks: int) -> Tensor:
    """``exp(T (minmax(a)^2 - 1)) tanh(tau sum tau)``."""
    spread = high - low
    place = (delta.abs().clamp(low, high) - low) / spread if spread > 0 else torch.ones_like(delta)
    return torch.exp(tasks * (place**2 - 1)) * torch.tanh(delta * total)


PCB = Rule(
    "pcb",
    pcb,
    "model",
    measure_model=measure_model,
    measure_tensor=measure_tensor,
    copies=(5, 12),
    coefficient=1.2,
    breaks=("scale",),
)
