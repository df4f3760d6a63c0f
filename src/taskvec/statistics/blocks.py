"""A model's parameters as the matrices whose curvature is a Kronecker product."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskvec.models.backbone import Backbone
from taskvec.models.selection import matrices_among

_SIDE = 4096
_SLIMMEST = 8
"""A factor has the square of a side: sides above the first are for matrices less slim than the second."""


@dataclass(frozen=True)
class Block:
    """The weight of a layer (rows, columns), with its bias as one more column; or a vector, as one row.

    Args:
        flipped: the weight is stored (columns, rows).
    """

    weight: str
    bias: str | None
    shape: torch.Size
    flipped: bool = False

    @property
    def names(self) -> list[str]:
        """Of its parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns, that of the bias included."""
        rows, columns = _matrix_shape(self.shape, self.flipped)
        return rows, columns + (self.bias is not None)

    def joined(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(…, rows, columns) of a weight (…, *shape) and a bias (…, rows)."""
        rows, columns = _matrix_shape(self.shape, self.flipped)
        leading = weight.shape[: weight.ndim - len(self.shape)]
        matrix = weight.mT if self.flipped else weight.reshape(*leading, rows, columns)
        return matrix if bias is None else torch.cat([matrix, bias.unsqueeze(-1)], -1)

    def parted(self, matrix: Tensor) -> list[Tensor]:
        """The weight and the bias that make a matrix (rows, columns)."""
        weight = matrix if self.bias is None else matrix[:, :-1]
        shaped = weight.T if self.flipped else weight.reshape(self.shape)
        return [shaped] if self.bias is None else [shaped, matrix[:, -1]]


def blocks(backbone: Backbone, names: Collection[str]) -> list[Block]:
    """The matrices among these parameters, in the network's order, and the vectors that are no bias of one.

    Tables that rows are looked up in are not among them, nor what is so large or so slim that its factors
    would not fit.
    """
    parameters = backbone.encoder_parameters()
    turned, biases = matrices_among(backbone, names), _biases(backbone)
    held = {weight: biases[weight] for weight in turned if biases.get(weight) in names}
    found = []
    for name in parameters:
        shape = parameters[name].shape
        if name in turned:
            block = Block(name, held.get(name), shape, turned[name])
        elif name in names and len(shape) == 1 and name not in held.values():
            block = Block(name, None, shape)
        else:
            continue
        if _fit(*block.sides):
            found.append(block)
    return found


def _biases(backbone: Backbone) -> dict[str, str]:
    """Weight -> bias of layers, where neither serves another layer."""
    owners: dict[int, set[int]] = {}
    for module in backbone.network.modules():
        for value in module._parameters.values():
            owners.setdefault(id(value), set()).add(id(module))
    stored = {id(value): name for name, value in backbone.encoder_parameters().items()}
    pairs = (pair for module in backbone.network.modules() for pair in _pairs(module))
    return {
        stored[id(weight)]: stored[id(bias)]
        for weight, bias in pairs
        if {id(weight), id(bias)} <= stored.keys() and owners[id(weight)] == owners[id(bias)]
    }


def _pairs(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """A layer's weight and bias, called as those of a linear layer or of the projections of attention."""
    own: Mapping[str, Tensor | None] = layer._parameters
    for prefix in ("", "in_proj_"):
        weight, bias = own.get(f"{prefix}weight"), own.get(f"{prefix}bias")
        if weight is not None and bias is not None and weight.ndim > 1:
            yield weight, bias


def _matrix_shape(shape: torch.Size, flipped: bool) -> tuple[int, int]:
    rows = 1 if len(shape) < 2 else shape[0]
    columns = shape.numel() // max(rows, 1)
    return (columns, rows) if flipped else (rows, columns)


def _fit(rows: int, columns: int) -> bool:
    small, large = sorted((rows, columns))
    return small > 0 and large <= max(_SIDE, _SLIMMEST * small)
