"""Model Breadcrumbs: neither the outliers nor the small change."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.magnitude import find_cuts, share, trim
from taskvec.rules.rule import Rule


def breadcrumbs(
    deltas: Tensor,
    *,
    density: Annotated[float, Field(gt=0, le=1)] = 0.15,
    gamma: Annotated[float, Field(ge=0, lt=1)] = 0.01,
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
    entries = deltas[0].numel()
    if not entries:
        return deltas.clone()
    kept = share(entries, density)
    outliers = min(int(gamma * entries), entries - kept)
    masked = _largest(deltas, kept + outliers)
    return masked - _largest(deltas, outliers) if outliers else masked


def _largest(deltas: Tensor, number: int) -> Tensor:
    cuts = find_cuts(lambda: [deltas], number)
    return torch.stack([trim(delta, cut)[0] for delta, cut in zip(deltas, cuts, strict=True)])


def _check(tasks: int | None, *, density: float, gamma: float) -> str | None:
    if density + gamma <= 1:
        return None
    return f"density {density:g} and gamma {gamma:g} add up to more than 1, so outliers would stay; lower one"


BREADCRUMBS = Rule("breadcrumbs", breadcrumbs, "tensor", stage="each", check=_check)
