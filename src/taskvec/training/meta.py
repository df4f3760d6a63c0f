"""Weights of auxiliary tasks by what they do for a target, one step ahead."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Meta:
    """Weigh each auxiliary task by how fast the target's loss falls with its weight.

        theta' = theta - rate * mean_i g_i
        -d L_target(theta') / d w_i = rate * <g_target(theta'), g_i>
        w_i = max(0, <g_target(theta'), g_i>), of all auxiliary tasks 1 in sum;  w_target = 1

    The loss at theta' is that of other training examples of the target than those of the step. Auxiliary
    tasks that would all harm get nothing. It is no combiner of rules: their vectors have no step ahead.

    Args:
        target: the number of the target.
        rate: of the step ahead, one of plain gradient descent; by default the learning rate.

    Source: the one-step meta-gradient of AUX-TS (Han et al. 2021, arXiv:2107.08765) without its network;
        weights as those of examples in Ren et al. 2018, arXiv:1803.09050. The combination is ours.
    """

    target: int
    rate: float | None = None
    name: str = "meta"

    def chosen(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The weight of each task; the last row of ``gram`` (task + 1, task + 1) is ``g_target(theta')``."""
        helpful = gram[-1, :-1].clamp(min=0)
        helpful[self.target] = 0
        weights = helpful / helpful.sum() if helpful.any() else torch.zeros_like(helpful)
        weights[self.target] = 1
        return weights
