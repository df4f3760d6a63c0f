"""The bound between the losses of several models and the loss of their mean."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone, on_device
from taskvec.models.functional import encode
from taskvec.training.parts import Part
from taskvec.training.regimes import Space
from taskvec.training.space import linearized

Params = Mapping[str, Tensor]

SAMPLE = 16
"""Training examples of each task that both sides are measured on: the first."""


class Bound:
    """Mean loss over all tasks, of one model after the other, on the same training examples.

        L(mean_t theta_t) <= mean_t L(theta_t),    L = mean_s L_s

    where L is convex between the models (Jensen), so that tuning every task lowers a bound of the joint loss.
    Nothing makes L convex in ordinary space: both sides are measured for one to see.

    Args:
        theta0: the tangent point, in tangent space.
    """

    def __init__(self, backbone: Backbone, parts: Sequence[Part], theta0: Params, space: Space) -> None:
        self._backbone = backbone
        self._lin = linearized(backbone, theta0) if space == "tangent" else None
        self._rest = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
        self._parts = parts

    def loss(self, point: Params) -> float:
        """Of parameters in ordinary space, of tau in tangent space.

        Cost: a forward pass of ``SAMPLE`` examples a task.
        """
        there = on_device(point, self._backbone.device)
        return sum(self._loss_of(part, there) for part in self._parts) / len(self._parts)

    @torch.no_grad()
    def _loss_of(self, part: Part, point: Params) -> float:
        device = self._backbone.device
        prepared = part.objective.prepare(self._backbone, part.split.first(SAMPLE))
        asked = part.objective.on(device)
        places = torch.arange(len(prepared.sizes))
        total = 0.0
        for some in torch.split(places, prepared.together or len(places)):
            batch = prepared.batch(some).on(device)
            outputs = self._outputs(point, batch.inputs)
            wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
            total += float(asked.loss(wide, batch)) * len(batch.index)
        return total / int(prepared.rows.sum())

    def _outputs(self, point: Params, inputs: Params) -> Tensor:
        if self._lin is None:
            return encode(self._backbone, {**self._rest, **point}, inputs)
        return self._lin(point, inputs)  # type: ignore[no-any-return]
