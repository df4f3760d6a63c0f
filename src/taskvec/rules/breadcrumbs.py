"""Model Breadcrumbs: neither the outliers nor the small change."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import Cut, cuts_of, share, trim
from taskvec.rules.norms import l1_ratios, rescaled
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, Stacks, for_each, task_by_task

Outliers = Annotated[float, Field(ge=0, lt=1)]


class Crumbs(NamedTuple):
    """What is kept of one task: the entries from the cut ``small`` on, but not those from ``large`` on."""

    small: Cut
    large: Cut | None


def breadcrumbs(
    deltas: Tensor,
    *,
    density: Fraction | Sequence[Fraction] = 0.15,
    gamma: Outliers | Sequence[Outliers] = 0.01,
    rescale: Literal["l1"] | None = None,
    _place: Place = ANYWHERE,
    _crumbs: Sequence[Crumbs] = (),
    _ratios: Sequence[float] | None = None,
) -> Tensor:
    """Remove the largest and the smallest entries of each task, then add.

        masked_t = tau_t where |tau_t| is among the largest but not among the very largest, else 0

    Args:
        deltas: (task, *shape).
        density: fraction of the entries of each tensor that are kept: max(1, round(density n)) of n. One for
            all tasks or one for each.
        gamma: fraction of the entries, the largest, that are removed: int(gamma n), or fewer in a small
            tensor where too few were left. One for all tasks or one for each; ``density + gamma`` is at
            most 1.
        rescale: bring every tensor back to its L1 norm (``l1``), or leave what is kept as it is.

    ``gamma = 0`` is trimming by magnitude.
    Source: Davari & Belilovsky 2024, arXiv:2312.06795; ``rescale``: mergekit.
    """
    if not deltas[0].numel():
        return deltas.clone()
    kept = _masked(deltas, _crumbs, _place.first)
    return kept if _ratios is None else rescaled(kept, _ratios)


def _masked(deltas: Tensor, crumbs: Sequence[Crumbs], first: int) -> Tensor:
    kept = torch.stack([trim(delta, each.small, first) for delta, each in zip(deltas, crumbs, strict=True)])
    for target, delta, each in zip(kept, deltas, crumbs, strict=True):
        if each.large is not None:
            target.sub_(trim(delta, each.large, first))
    return kept


def measure_tensor(
    stacks: Stacks,
    name: str,
    *,
    density: float | Sequence[float],
    gamma: float | Sequence[float],
    rescale: str | None,
    **_: object,
) -> dict[str, Any]:
    """What is kept of each task in a tensor, and what brings it back to its L1 norm."""
    entries = stacks.numel(name)
    if not entries:
        return {}
    tasks = stacks.tasks(name)
    kept = [share(entries, fraction) for fraction in for_each(density, tasks)]
    outliers = [
        min(int(fraction * entries), entries - left)
        for fraction, left in zip(for_each(gamma, tasks), kept, strict=True)
    ]
    small = cuts_of(stacks, name, [sum(pair) for pair in zip(kept, outliers, strict=True)])
    large: Sequence[Cut | None] = [None] * tasks
    if any(outliers):
        above = cuts_of(stacks, name, [max(1, number) for number in outliers])
        large = [cut if number else None for cut, number in zip(above, outliers, strict=True)]
    crumbs = list(map(Crumbs, small, large))
    masked = (
        (deltas, _masked(deltas, crumbs, context["_place"].first))
        for deltas, context in stacks.pieces_of(name)
    )
    return {"_crumbs": crumbs, "_ratios": l1_ratios(masked) if rescale else None}


def _check(
    tasks: int | None, *, density: float | Sequence[float], gamma: float | Sequence[float], **_: object
) -> str | None:
    for kept, removed in task_by_task(density, gamma):
        if kept + removed > 1:
            sums = f"density {kept:g} and gamma {removed:g} add up to more than 1"
            return f"{sums}, so outliers would stay; lower one"
    return None


BREADCRUMBS = Rule(
    "breadcrumbs", breadcrumbs, "tensor", stage="each", measure_tensor=measure_tensor, check=_check
)
