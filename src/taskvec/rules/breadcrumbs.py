"""Model Breadcrumbs: neither the outliers nor the small change."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import Cut, cuts_of, share, trim
from taskvec.rules.rule import ANYWHERE, Place, Rule, Stacks


def breadcrumbs(
    deltas: Tensor,
    *,
    density: Annotated[float, Field(gt=0, le=1)] = 0.15,
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.01,
    _place: Place = ANYWHERE,
    _crumbs: Sequence[tuple[Cut, Cut | None]] | None = None,
) -> Tensor:
    """Remove the largest and the smallest entries of each task, then add.

        masked_t = tau_t where |tau_t| is among the largest but not among the very largest, else 0

    Args:
        deltas: (task, *shape).
        density: fraction of the entries of each tensor that are kept: max(1, round(density n)) of n.
        gamma: fraction of the entries, the largest, that are removed: int(gamma n), or fewer in a small
            tensor where too few were left. ``density + gamma`` is at most 1.

    Nothing is rescaled. ``gamma = 0`` is trimming by magnitude.
    Source: Davari & Belilovsky 2024, arXiv:2312.06795.
    """
    if not deltas[0].numel():
        return deltas.clone()
    crumbs = _crumbs or measure(Stacks.single(deltas), "", density=density, gamma=gamma)["_crumbs"]
    return torch.stack(
        [_masked(delta, *pair, _place.first) for delta, pair in zip(deltas, crumbs, strict=True)]
    )


def _masked(delta: Tensor, small: Cut, large: Cut | None, first: int) -> Tensor:
    kept = trim(delta, small, first)
    return kept if large is None else kept.sub_(trim(delta, large, first))


def measure(
    stacks: Stacks, name: str, *, density: float, gamma: float, **_: object
) -> dict[str, list[tuple[Cut, Cut | None]]]:
    """For each task the cut below which entries are small, and the one above which they are outliers."""
    entries = stacks.numel(name)
    if not entries:
        return {}
    kept = share(entries, density)
    outliers = min(int(gamma * entries), entries - kept)
    small = cuts_of(stacks, name, kept + outliers)
    large: Sequence[Cut | None] = cuts_of(stacks, name, outliers) if outliers else [None] * len(small)
    return {"_crumbs": list(zip(small, large, strict=True))}


def _check(tasks: int | None, *, density: float, gamma: float) -> str | None:
    if density + gamma <= 1:
        return None
    return f"density {density:g} and gamma {gamma:g} add up to more than 1, so outliers would stay; lower one"


BREADCRUMBS = Rule("breadcrumbs", breadcrumbs, "tensor", stage="each", measure=measure, check=_check)
