"""Signals: what a step makes smaller, of one batch of one task."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from taskvec.tasks.objective import Batch, Objective


class Signal(Protocol):
    """The mean over the rows of a batch; differentiable in the outputs."""

    def __call__(self, task: str, objective: Objective, outputs: Tensor, batch: Batch) -> Tensor:
        """Of a task's batch, with outputs (R, d) in float32 or more."""


def entropy(task: str, objective: Objective, outputs: Tensor, batch: Batch) -> Tensor:
    """The mean Shannon entropy, in nats, of the predictions; labels are not looked at.

    Source: AdaMerging, Yang et al. 2024 (arXiv:2310.02575).
    """
    shares = objective.logits(outputs).log_softmax(-1)
    return -(shares.exp() * shares).sum(-1).mean()


def labels(task: str, objective: Objective, outputs: Tensor, batch: Batch) -> Tensor:
    """The task's own loss."""
    return objective.loss(outputs, batch)


SIGNALS: dict[str, Callable[..., Tensor]] = {"entropy": entropy, "labels": labels}
