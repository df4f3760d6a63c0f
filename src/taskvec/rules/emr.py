"""EMR's unified vector: the sign that tasks elect, with the largest change that has it."""

import torch
from torch import Tensor

from taskvec.rules.rule import Rule


def emr(deltas: Tensor) -> Tensor:
    """Elect a sign for each entry and take the largest change of that sign.

        sign   = sgn(sum_t tau_t),     minus where the sum is zero
        merged = sign * max_t |tau_t| over the tasks whose entry has that sign

    This is the vector that EMR's masks and rescalers are made for, ``taskvec.emr``: with the mask and the
    rescaler of a task, which has to be known when the model is served, it comes close to the vector of that
    task. By itself it is a rule like others, longer than their mean, so apply it at a scale below 1.

    Args:
        deltas: (task, *shape). The sign is that of the sum in float64.

    Source: Huang et al. 2024, arXiv:2405.17461; a sum of zero as in the authors' code.
    """
    upwards = deltas.sum(0, dtype=torch.float64) > 0
    return torch.where(upwards, deltas.amax(0).clamp_min(0), deltas.amin(0).clamp_max(0))


EMR = Rule("emr", emr, "element")
