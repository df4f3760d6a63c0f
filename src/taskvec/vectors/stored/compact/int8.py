"""Eight-bit integers with scales."""

from typing import ClassVar

import torch
from torch import Tensor

from taskvec.vectors.stored.compact.form import Parts
from taskvec.vectors.stored.compact.quantized import Group, Quantized
from taskvec.weights import TensorSpec


class Int8(Quantized):
    """Each entry as the nearest of 255 multiples of a scale, the 127th of the largest entry of its group."""

    name: ClassVar[str] = "int8"
    group: Group = 128

    def scales(self, groups: Tensor) -> Tensor:
        """The 127th part of the largest entry."""
        return groups.abs().nan_to_num(0.0).amax(1) / 127

    def codes(self, multiples: Tensor) -> Tensor:
        """The nearest integers."""
        return multiples.round().clamp(-127, 127).to(torch.int8)

    def factors(self, parts: Parts, first: int, last: int) -> Tensor:
        """The integers."""
        return parts.read("codes", slice(first, last))

    def code_spec(self, count: int) -> TensorSpec:
        """One byte an entry."""
        return TensorSpec((count,), torch.int8)
