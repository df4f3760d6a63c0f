"""What a step adds to the gradients of the leaves: the loss of its examples, and the penalties."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec.group import current
from taskvec.place import autocast
from taskvec.tasks.objective import Objective
from taskvec.training.joint import Joint
from taskvec.training.penalties import PENALTIES
from taskvec.training.penalties.penalty import Given
from taskvec.training.settings import TrainSettings
from taskvec.training.sharded import Sharded
from taskvec.training.sharing import add_shared
from taskvec.training.space import Moved
from taskvec.training.stream import Step

Weighted = tuple[float, Callable[[int], Tensor]]
"""A penalty and its strength."""


@dataclass(frozen=True)
class Terms:
    """What the objective of one step was made of: scalars on the device that computes.

    Args:
        facts: what is worth logging beside.
    """

    losses: Sequence[Tensor]
    penalties: Sequence[Tensor]
    facts: Mapping[str, float] = field(default_factory=dict)


def bind_penalties(given: Given) -> list[Weighted]:
    """The penalties that the settings ask for, but those of no strength, ready for a training."""
    return [
        (asked.strength, PENALTIES[asked.kind](asked, given))
        for asked in given.settings.penalty
        if asked.strength
    ]


def add_gradients(
    moved: Moved,
    asked: Sequence[Objective],
    penalties: Sequence[Weighted],
    given: Sequence[Step],
    number: int,
    settings: TrainSettings,
    *,
    joint: Joint | None = None,
    lr: float = 0.0,
    sign: float = 1.0,
    scale: float = 1.0,
) -> Terms:
    """Add the gradient of ``scale * (sign * mean loss + penalties)`` to the leaves.

    Of several processes each computes its share: its micro-batches, and some of the penalties.

    Args:
        asked: the objective of each part.
        given: examples of one part; or of several, whose gradients ``joint`` combines.
        number: of the step, from 0.
        lr: the learning rate of this step.
    """

    def add(place: int, factor: float = 1.0, only: Sequence[Tensor] | None = None) -> list[Tensor]:
        step = given[place]
        return _add_loss(moved, asked[step.chunk.part], step, settings, sign * scale * factor, only)

    def add_penalties() -> list[Tensor]:
        return [_add_penalty(penalty, number, scale) for penalty in group.deal(penalties)]

    group, leaves = current(), list(moved.leaves.values())
    if joint is None:
        losses, penalized = add_shared(group, leaves, lambda: [add(0), add_penalties()])
        return Terms(losses, penalized)

    def add_whole(place: int, factor: float, only: Sequence[Tensor]) -> list[Tensor]:
        return list(*add_shared(group, only, lambda: [add(place, factor, only)]))

    losses, facts = joint.add(moved.leaves, add_whole, number, lr=lr, scale=scale)
    [penalized] = add_shared(group, leaves, lambda: [add_penalties()]) if penalties else [[]]
    return Terms(losses, penalized, facts)


def _add_loss(
    moved: Moved,
    asked: Objective,
    step: Step,
    settings: TrainSettings,
    factor: float,
    only: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Add the gradient of ``factor`` times the mean loss to the leaves, or only to some; the terms of that
    loss."""
    losses, device = [], moved.backbone.device
    if isinstance(moved, Sharded):
        moved.keep_pace(len(step.micros))
    for micro in step.micros:
        batch = micro.on(device)
        with autocast(settings.precision, device):
            outputs = moved.outputs(batch.inputs)
        loss = asked.loss(_widened(outputs), batch) * (len(batch.index) / step.rows)
        torch.autograd.backward(factor * loss, inputs=only)
        losses.append(loss.detach())
    return losses


def _add_penalty(penalty: Weighted, number: int, scale: float) -> Tensor:
    strength, term = penalty
    value = strength * term(number)
    torch.autograd.backward(scale * value)
    return value.detach()


def _widened(outputs: Tensor) -> Tensor:
    """In float32, or float64 as they are."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
