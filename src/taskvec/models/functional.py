"""A backbone as a function of its parameters."""

from collections.abc import Mapping

from torch import Tensor
from torch.func import functional_call

from taskvec.models.backbone import Backbone


def encode(backbone: Backbone, params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Features (N, d) of a batch at other values of some parameters.

    Args:
        params: values by checkpoint name, of any of ``backbone.encoder_parameters()``; the others keep the
            backbone's own. Gradients flow into them.
        batch: what ``backbone.collate`` gives.
    """
    place = {stored: f"network.{name}" for name, stored in backbone.names.items()}
    values = {place[name]: value for name, value in params.items()}
    return functional_call(backbone, values, (), dict(batch))  # type: ignore[no-any-return]
