"""Consensus of TALL masks: keep what several tasks need."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.rule import Rule, for_each

NonNegative = Annotated[float, Field(ge=0)]


def consensus(
    deltas: Tensor,
    *,
    lam: NonNegative | Sequence[NonNegative] = 0.4,
    k: Annotated[int, Field(ge=0)] = 2,
) -> Tensor:
    """Add the task vectors and keep the entries that at least k tasks need.

        m_t    = 1[|tau_t| > lam_t |sum_s tau_s - tau_t|]           the TALL mask of a task
        merged = sum_t tau_t where sum_t m_t >= k, else 0

    Args:
        deltas: (task, *shape).
        lam: one for all tasks or one for each; 0.2 to 0.6 in the paper, chosen on validation data. The
            larger, the fewer entries a task needs.
        k: 0 keeps all; 2 drops what one task alone needs and what none does. More than there are tasks
            would keep nothing.

    Source: Wang et al. 2024, arXiv:2405.07813 (Consensus TA; it writes >=, the authors' code >).
    """
    total = deltas.sum(0)
    needed = torch.zeros_like(total, dtype=torch.int32)
    for delta, factor in zip(deltas, for_each(lam, len(deltas)), strict=True):
        needed += delta.abs() > factor * (total - delta).abs()
    return total * (needed >= k)


def _check(tasks: int | None, *, k: int, **_: object) -> str | None:
    if tasks is not None and k > tasks:
        return f"k is {k}, expected at most {tasks}, the number of task vectors; nothing would be kept"
    return None


CONSENSUS = Rule("consensus", consensus, "element", check=_check, coefficient=0.3)
