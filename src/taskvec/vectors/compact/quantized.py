"""What the forms that store entries in few bits have in common: a scale for each group of entries."""

from abc import abstractmethod
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from taskvec.vectors.compact.form import Form, Parts, Shape, Specs, entries, floating
from taskvec.weights import TensorSpec
from taskvec.weights.source import BLOCK, rows_shape

Group = Annotated[int, Field(ge=1, le=1 << 31)]


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

    def encode(self, tensor: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Scales and codes; a group of zeros has the scale zero and stays as it is."""
        whole_bytes = 8 * self.group
        pieces = torch.split(tensor.reshape(-1), max(1, BLOCK // whole_bytes) * whole_bytes)
        scales, codes = zip(*map(self._piece, pieces), strict=True)
        return {"scales": torch.cat(scales), "codes": torch.cat(codes)}

    def _piece(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        groups = pad(flat, (0, -len(flat) % self.group), value=torch.nan).reshape(-1, self.group)
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
