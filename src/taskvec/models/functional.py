"""A backbone as a function of its parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from taskvec.models.backbone import Backbone, on_device
from taskvec.substitution import substituted


def encode(backbone: Backbone, params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Features (N, d) of a batch at other values of some parameters.

    Args:
        params: values by checkpoint name, of any of ``backbone.encoder_parameters()`` and ``statistics()``,
            on its device; the others keep the backbone's own. Gradients flow into them. Those of a trained
            head change nothing.
        batch: what ``backbone.collate`` gives, on any device.
    """
    inputs = on_device(batch, backbone.device)
    with placed(backbone, params):
        return backbone(**inputs)  # type: ignore[no-any-return]


@contextmanager
def placed(backbone: Backbone, params: Mapping[str, Tensor]) -> Iterator[None]:
    """The backbone at other values of some parameters and statistics, by checkpoint name, for a while."""
    head = backbone.head_parameters()
    values = {backbone.places[name]: value for name, value in params.items() if name not in head}
    with substituted(backbone.network, values):
        yield
