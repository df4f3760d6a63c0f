"""Signs with scales."""

from typing import ClassVar

import torch
from torch import Tensor

from taskvec.vectors.stored.compact.bits import pack, packed_size, unpack
from taskvec.vectors.stored.compact.form import Parts
from taskvec.vectors.stored.compact.quantized import Group, Quantized
from taskvec.weights import TensorSpec


class OneBit(Quantized):
    """Each entry as its sign times the mean magnitude of its group: the least squares given the signs.

    Source: Liu et al. 2024, arXiv:2402.10193; there a scale belongs to a matrix and is trained.
    """

    name: ClassVar[str] = "1-bit"
    group: Group = 512

    def scales(self, groups: Tensor) -> Tensor:
        """The mean magnitude."""
        return groups.abs().nanmean(1, dtype=torch.float64).to(groups.dtype)

    def codes(self, multiples: Tensor) -> Tensor:
        """A set bit for plus, zero included."""
        return pack(multiples >= 0)

    def factors(self, parts: Parts, first: int, last: int) -> Tensor:
        """1 and -1."""
        data = parts.read("codes", slice(first // 8, packed_size(last)))
        return unpack(data, first % 8, first % 8 + last - first).to(torch.int8) * 2 - 1

    def code_spec(self, count: int) -> TensorSpec:
        """One bit an entry."""
        return TensorSpec((packed_size(count),), torch.uint8)
