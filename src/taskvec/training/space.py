"""An encoder in its tangent space."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.tangent.linearization import Linearization


def linearized(backbone: Backbone, start: Mapping[str, Tensor] | None = None) -> Linearization:
    """The encoder in its tangent space: ``lin(tau, batch)`` gives features (N, d), affine in tau.

    Only the encoder is linear; a head that normalises the feature comes after it.

    Args:
        start: where the tangent space is taken, for parameters that are not as the backbone has them.
    """
    theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    return Linearization(
        partial(encode, backbone), {**theta0, **(start or {})}, example=(backbone.example(),)
    )
