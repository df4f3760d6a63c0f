"""What the forms that store entries in few bits have in common: a scale for each group of entries."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from taskvec.vectors.stored.compact.form import Coded, Entries, Form, Parts, Shape, Specs, entries, floating
from taskvec.weights import TensorSpec
from taskvec.weights.blocks import BLOCK, rows_shape

Group = Annotated[int, Field(ge=1, le=1 << 31)]

_COPIES = 10
"""Of a piece, while it is encoded: 1-bit averages in float64."""


class Quantized(Form):
    """Groups of ``group`` consecutive entries of a tensor, in row-major order, share a scale.

    Parts: ``scales`` (groups,) in the precision of computing, and ``codes``.
    """

    parts: ClassVar[tuple[str, ...]] = ("scales", "codes")
    takes_dtype: ClassVar[bool] = False
    group: Group

    @abstractmethod
    def scales(self, groups: Tensor) -> Tensor:
        """The scale of each group: (groups, group), NaN after the last entry -> (groups,)."""

    @abstractmethod
    def codes(self, multiples: Tensor) -> Tensor:
        """What is stored of entries in units of their scales, (entries,)."""

    @abstractmethod
    def factors(self, parts: Parts, first: int, last: int) -> Tensor:
        """The multiples that the codes from ``first`` to before ``last`` stand for."""

    @abstractmethod
    def code_spec(self, count: int) -> TensorSpec:
        """The codes of so many entries."""

    def encode(self, tensor: Entries, dtype: torch.dtype) -> Coded:
        """Scales and codes; a group of zeros has the scale zero and stays as it is."""
        groups = -(-tensor.spec.numel // self.group)
        scales = TensorSpec((groups,), tensor.spec.dtype)
        return Coded({"scales": scales, "codes": self.code_spec(tensor.spec.numel)}, self._pieces(tensor))

    def working_bytes(self, shape: Shape, dtype: torch.dtype) -> int:
        """That of some whole groups, whose codes are whole bytes."""
        return _COPIES * dtype.itemsize * min(math.prod(shape), max(BLOCK, self._together))

    @property
    def _together(self) -> int:
        """Entries that are encoded at a time."""
        whole_bytes = 8 * self.group
        return max(1, BLOCK // whole_bytes) * whole_bytes

    def _pieces(self, tensor: Entries) -> Iterator[tuple[str, int, Tensor]]:
        first = 0
        for flat in tensor.pieces(self._together):
            scales, codes = self._piece(flat)
            yield "scales", first // self.group, scales
            yield "codes", self.code_spec(first).numel, codes
            first += len(flat)

    def _piece(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        group = self.group if self.group <= BLOCK else min(self.group, len(flat))
        groups = pad(flat, (0, -len(flat) % group), value=torch.nan).reshape(-1, group)
        scales = self.scales(groups)
        multiples = torch.where(scales[:, None] > 0, groups / scales[:, None], 0)
        return scales, self.codes(multiples.reshape(-1)[: len(flat)])

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> Tensor:
        """Multiples times scales."""
        first, last = entries(shape, rows)
        start = first // self.group
        end = -(-last // self.group)
        # Of each group as many entries as lie in the rows: a group may be larger than all memory.
        places = torch.arange(start, end + 1) * self.group
        counts = places.clamp_(first, last).diff()
        spread = parts.read("scales", slice(start, end)).repeat_interleave(counts, output_size=last - first)
        return (self.factors(parts, first, last) * spread).reshape(rows_shape(shape, rows))

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        """Sizes follow from the number of entries."""
        count = TensorSpec(shape, torch.uint8).numel
        scales = TensorSpec((-(-count // self.group),), floating(specs, "scales"))
        return {"scales": scales, "codes": self.code_spec(count)}
