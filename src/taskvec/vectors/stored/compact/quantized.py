"""Forms that store every entry in few bits: bfloat16, or units of a scale that a group of entries shares."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch.nn.functional import pad

from taskvec.later import torch
from taskvec.vectors.stored.compact.form import (
    PLAIN,
    Coded,
    Entries,
    Form,
    Parts,
    Shape,
    Specs,
    entries,
    floating,
    pack,
    packed_size,
    plain,
    unpack,
)
from taskvec.weights import TensorSpec
from taskvec.weights.blocks import BLOCK, rows_shape

if TYPE_CHECKING:
    from torch import Tensor

Group = Annotated[int, Field(ge=1, le=1 << 31)]

_COPIES = 10
"""Of a piece, while it is encoded: 1-bit averages in float64."""


class Rounded(Form):
    """Every entry rounded to bfloat16: half of float32, relative errors up to 2^-9."""

    name: ClassVar[str] = "bf16"
    parts: ClassVar[tuple[str, ...]] = ()
    takes_dtype: ClassVar[bool] = False

    def encode(self, tensor: Entries, dtype: "torch.dtype") -> Coded:
        return plain(tensor, torch.bfloat16)

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> "Tensor":
        return parts.read(PLAIN, rows).float()

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        return {}


class Quantized(Form):
    """Groups of ``group`` consecutive entries of a tensor, in row-major order, share a scale.

    Parts: ``scales`` (groups,) in the precision of computing, and ``codes``.
    """

    parts: ClassVar[tuple[str, ...]] = ("scales", "codes")
    takes_dtype: ClassVar[bool] = False
    group: Group

    @abstractmethod
    def scales(self, groups: "Tensor") -> "Tensor":
        """The scale of each group: (groups, group), NaN after the last entry -> (groups,)."""

    @abstractmethod
    def codes(self, multiples: "Tensor") -> "Tensor":
        """What is stored of entries in units of their scales, (entries,)."""

    @abstractmethod
    def factors(self, parts: Parts, first: int, last: int) -> "Tensor":
        """The multiples that the codes from ``first`` to before ``last`` stand for."""

    @abstractmethod
    def code_spec(self, count: int) -> TensorSpec:
        """The codes of so many entries."""

    def encode(self, tensor: Entries, dtype: "torch.dtype") -> Coded:
        count = tensor.spec.numel
        scales = TensorSpec((-(-count // self.group),), tensor.spec.dtype)
        return Coded({"scales": scales, "codes": self.code_spec(count)}, self._pieces(tensor))

    def working_bytes(self, shape: Shape, dtype: "torch.dtype") -> int:
        return _COPIES * dtype.itemsize * min(math.prod(shape), max(BLOCK, self._together))

    @property
    def _together(self) -> int:
        """Entries that are encoded at a time: whole groups, whose codes are whole bytes."""
        whole_bytes = 8 * self.group
        return max(1, BLOCK // whole_bytes) * whole_bytes

    def _pieces(self, tensor: Entries) -> "Iterator[tuple[str, int, Tensor]]":
        first = 0
        for flat in tensor.pieces(self._together):
            scales, codes = self._piece(flat)
            yield "scales", first // self.group, scales
            yield "codes", self.code_spec(first).numel, codes
            first += len(flat)

    def _piece(self, flat: "Tensor") -> "tuple[Tensor, Tensor]":
        """A group of zeros has the scale zero and stays as it is."""
        group = self.group if self.group <= BLOCK else min(self.group, len(flat))
        groups = pad(flat, (0, -len(flat) % group), value=torch.nan).reshape(-1, group)
        scales = self.scales(groups)
        multiples = torch.where(scales[:, None] > 0, groups / scales[:, None], 0)
        return scales, self.codes(multiples.reshape(-1)[: len(flat)])

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> "Tensor":
        first, last = entries(shape, rows)
        start, end = first // self.group, -(-last // self.group)
        # Of each group as many entries as lie in the rows: a group may be larger than all memory.
        counts = (torch.arange(start, end + 1) * self.group).clamp_(first, last).diff()
        spread = parts.read("scales", slice(start, end)).repeat_interleave(counts, output_size=last - first)
        return (self.factors(parts, first, last) * spread).reshape(rows_shape(shape, rows))

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        count = math.prod(shape)
        scales = TensorSpec((-(-count // self.group),), floating(specs, "scales"))
        return {"scales": scales, "codes": self.code_spec(count)}


class Int8(Quantized):
    """Each entry as the nearest of 255 multiples of a scale, the 127th of the largest entry of its group."""

    name: ClassVar[str] = "int8"
    group: Group = 128

    def scales(self, groups: "Tensor") -> "Tensor":
        return groups.abs().nan_to_num(0.0).amax(1) / 127

    def codes(self, multiples: "Tensor") -> "Tensor":
        return multiples.round().clamp(-127, 127).to(torch.int8)

    def factors(self, parts: Parts, first: int, last: int) -> "Tensor":
        return parts.read("codes", slice(first, last))

    def code_spec(self, count: int) -> TensorSpec:
        return TensorSpec((count,), torch.int8)


class OneBit(Quantized):
    """Each entry as its sign times the mean magnitude of its group: the least squares given the signs.

    The bit is set for plus, zero included.

    Source: Liu et al. 2024, arXiv:2402.10193; there a scale belongs to a matrix and is trained.
    """

    name: ClassVar[str] = "1-bit"
    group: Group = 512

    def scales(self, groups: "Tensor") -> "Tensor":
        return groups.abs().nanmean(1, dtype=torch.float64).to(groups.dtype)

    def codes(self, multiples: "Tensor") -> "Tensor":
        return pack(multiples >= 0)

    def factors(self, parts: Parts, first: int, last: int) -> "Tensor":
        return unpack(lambda octets: parts.read("codes", octets), first, last).to(torch.int8) * 2 - 1

    def code_spec(self, count: int) -> TensorSpec:
        return TensorSpec((packed_size(count),), torch.uint8)
