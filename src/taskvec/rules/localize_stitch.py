"""Localize-and-Stitch without data: each task's few largest changes, side by side."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from taskvec.rules import magnitude, ties
from taskvec.rules.magnitude import Cut
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule


def localize_stitch(
    deltas: Tensor,
    *,
    keep: Fraction | Sequence[Fraction] = 0.05,
    trim: Literal["tensor", "global"] = "global",
    _place: Place = ANYWHERE,
    _cuts: Sequence[Cut] = (),
) -> Tensor:
    """Keep the few largest entries of each task, and average where those of several tasks overlap.

        localized_t = tau_t where |tau_t| is among the largest, else 0
        merged      = mean of localized_t over the tasks whose entry is not 0

    Args:
        deltas: (task, *shape).
        keep: fraction of entries kept of each task, above 0 and up to 1; one for all tasks or one for each.
            Of n entries exactly max(1, round(keep n)), equal magnitudes in row-major order.
        trim: whether a fraction of the whole task vector (``global``), or of each ``tensor``.

    The paper learns its masks from a few labelled examples; this is its form without data. No coefficient:
    what a task keeps, it keeps in full where no other task does. It is ``ties`` without the election.
    Source: He et al. 2024, arXiv:2408.13656 (Localize-and-Stitch); zeros that never count: our reading.
    """
    total, overlaps = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, cut in zip(deltas, _cuts, strict=bool(_cuts)):  # no cuts: no task changes anything here
        kept = magnitude.trim(delta, cut, _place.first)
        total += kept
        overlaps += kept != 0
    return total / overlaps.clamp(min=1)


LOCALIZE_STITCH = Rule(
    "localize_stitch",
    localize_stitch,
    "model",
    measure_model=ties.measure_model,
    measure_tensor=ties.measure_tensor,
    copies=(3, 9),
)
