"""Weight decay towards the pre-trained model, as a term of the loss."""

import torch
from torch import Tensor

from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.settings import Decay


def bind(settings: Decay, given: Given) -> Penalty:
    """``||tau||^2 / 2``.

    Unlike the decoupled decay of AdamW its gradient is clipped, and divided by the second moments, with that
    of the loss.
    """

    def penalty(_: int) -> Tensor:
        norms = torch._foreach_norm(list(given.moved.tau().values()))
        return torch.stack(norms).square().sum() / 2

    return penalty
