"""MagMax: the largest change wins."""

import torch
from torch import Tensor

from taskvec.rules.rule import Rule


def magmax(deltas: Tensor) -> Tensor:
    """Take each entry from the task that changes it most.

        merged[j] = tau_t[j],     t = argmax_t |tau_t[j]|

    Args:
        deltas: (task, *shape). Of equal magnitudes the later task's is taken; NaN stays.

    Source: Marczak et al. 2024, arXiv:2407.06322.
    """
    winner = deltas[0].clone()
    for delta in deltas[1:]:
        winner = torch.where((delta.abs() >= winner.abs()) | delta.isnan(), delta, winner)
    return winner


MAGMAX = Rule("magmax", magmax, "element", coefficient=0.5)
