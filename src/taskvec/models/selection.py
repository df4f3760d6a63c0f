"""Which parameters of an encoder a regime trains."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
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
    """What these parameters hold, detached, in float32 or float64 as it is, by the same names."""
    held = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    wide = {
        name: torch.promote_types(held[name].dtype, torch.float32) for name in select(backbone, selection)
    }
    return {name: held[name].to(dtype) for name, dtype in wide.items()}


def find_matrices(backbone: Backbone, names: Iterable[str]) -> dict[str, bool]:
    """Those of ``names`` that a layer multiplies its inputs by, and whether it keeps them as (in, out).

    They are the weights of linear layers, of convolutions without groups, and of the fused projections of
    torch's attention; tables that rows are looked up in are not, nor are output layers that share one.

    Raises: InputError for none.
    """
    known = list(names)
    matrices = matrices_among(backbone, known)
    if not matrices:
        raise InputError(
            f"{backbone.ref}: no matrix of a linear layer or convolution among the {len(known)} selected "
            f"parameters (such as {known[0]}), expected some for factors of low rank; select others, or use "
            "space ordinary or tangent"
        )
    return matrices


def matrices_among(backbone: Backbone, names: Iterable[str]) -> dict[str, bool]:
    """The same where there may be none."""
    held: dict[int, list[bool | None]] = {}
    for module in backbone.network.modules():
        for leaf, value in module.named_parameters(recurse=False):
            held.setdefault(id(value), []).append(_orientation(module, leaf))
    parameters = backbone.encoder_parameters()
    found = {name: held[id(parameters[name])] for name in names}
    return {name: bool(uses[0]) for name, uses in found.items() if None not in uses}


def _orientation(layer: nn.Module, leaf: str) -> bool | None:
    """Whether a parameter is a matrix stored as (in, out); ``None`` if it is none."""
    is_conv1d = type(layer).__name__ == "Conv1D"
    if leaf == "weight" and (isinstance(layer, nn.Linear) or is_conv1d):
        return is_conv1d
    convolves = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1
    attends = isinstance(layer, nn.MultiheadAttention)
    return False if (convolves and leaf == "weight") or (attends and leaf == "in_proj_weight") else None
