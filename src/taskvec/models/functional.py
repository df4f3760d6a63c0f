"""A backbone as a function of its parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    if backbone.sharding is not None:
        backbone.sharding.check_own(backbone.network, values)
        values = {}  # which the network puts in their places itself, block by block
    with substituted(backbone.network, values):
        yield


@contextmanager
def differentiable_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms in eval mode through which gradients reach running mean and variance too, for a while."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.forward = MethodType(_normalised, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalised(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch norm in eval mode gives, of plain operations."""
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None:
        return type(norm).forward(norm, x)
    scale, shift = torch.rsqrt(variance + norm.eps), -mean
    shape = (1, -1, *(1,) * (x.dim() - 2))
    y = (x + shift.view(shape)) * scale.view(shape)
    if norm.affine:
        y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return y
