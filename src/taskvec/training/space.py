"""The two spaces in which a task vector displaces an encoder."""

from functools import partial
from typing import Literal

from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.tangent.linearization import Linearization

Space = Literal["ordinary", "tangent"]


def linearized(backbone: Backbone) -> Linearization:
    """The encoder in its tangent space: ``lin(tau, batch)`` gives features (N, d), affine in tau.

    tau is by checkpoint name. Only the encoder is linear: a head that normalises the feature is applied after.
    """
    theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    return Linearization(partial(encode, backbone), theta0, example=(backbone.example(),))
