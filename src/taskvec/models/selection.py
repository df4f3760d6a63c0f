"""Which parameters of an encoder a regime trains."""

from torch import Tensor

from taskvec.arguments import checked
from taskvec.models.backbone import Backbone
from taskvec.names import select_names


@checked
def select(backbone: Backbone, selection: str) -> list[str]:
    """Checkpoint names of the encoder's parameters in a selection, in the network's order.

    Args:
        selection: see :func:`taskvec.names.select_names`.

    Raises: InputError when nothing is selected, or the selection is unknown.
    """
    return select_names(backbone.encoder_parameters(), selection, backbone.ref)


def selected(backbone: Backbone, selection: str) -> dict[str, Tensor]:
    """What these parameters hold, detached, in float32, by the same names."""
    parameters = backbone.encoder_parameters()
    return {name: parameters[name].detach().float() for name in select(backbone, selection)}
