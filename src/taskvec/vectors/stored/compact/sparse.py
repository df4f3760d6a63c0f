"""The largest entries of a tensor, and where they lie."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from taskvec.later import torch
from taskvec.rules.magnitude import Cut, cuts_of, share, trim
from taskvec.rules.rule import ANYWHERE, Stacks
from taskvec.vectors.stored.compact.form import (
    Coded,
    ContradictoryParts,
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
from taskvec.weights.blocks import row_blocks, row_size, rows_shape
from taskvec.weights.dtypes import compute_dtype

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 1 << 26
"""Entries of the longest row that is stored sparsely: a row is decoded whole, however few bytes it has."""

# Places within a page take two bytes, within a block one.
PAGE = 1 << 16
"""Entries of a page. Its values and positions can be read without those of other pages."""
BLOCK = 1 << 8
_LOCAL = {"bytes": BLOCK, "words": PAGE}
"""The ways to store positions as places in equal parts of the tensor, and the entries of such a part."""
_TOGETHER = 8 * PAGE
"""Entries that are encoded at a time."""

_COPIES = 10
"""Of so many entries, while they are encoded: int64 places and their like."""


class Sparse(Form):
    """The fraction ``density`` of the entries of a tensor, the largest; the others are zero.

    Parts: ``values`` (kept,) in row-major order; ``starts`` (pages + 1,) int64, how many values lie before
    each page of 65,536 entries; and the positions in the smallest of three ways: ``bits``, one for each
    entry; ``bytes``, the place of each value in its block of 256 entries, with ``counts``, how many values a
    block has; or ``words``, the place of each value in its page.
    """

    name: ClassVar[str] = "sparse"
    parts: ClassVar[tuple[str, ...]] = ("values", "starts", "bits", "bytes", "counts", "words")
    density: Annotated[float, Field(gt=0, le=1)]

    def encode(self, tensor: Entries, dtype: "torch.dtype") -> Coded:
        # Three passes over the tensor, and one more where of equal entries not all are kept.
        if _row(tensor.spec.shape) > LONGEST:
            return plain(tensor, dtype)
        count = tensor.spec.numel
        keep = share(count, self.density)
        [cut] = cuts_of(_stacks(tensor), "", keep)
        kept = keep if cut.threshold > 0 else sum(int(p.count_nonzero()) for p in tensor.pieces(_TOGETHER))
        ways = _ways(count, kept)
        way = min(ways, key=lambda way: sum(part.nbytes for part in ways[way].values()))
        return Coded(_specs(count, kept, dtype, way), _pieces(tensor, cut, way, dtype))

    def working_bytes(self, shape: Shape, dtype: "torch.dtype") -> int:
        return super().working_bytes(shape, dtype) + _COPIES * dtype.itemsize * _TOGETHER

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> "Tensor":
        count = math.prod(shape)
        first, last = entries(shape, rows)
        pages = slice(first // PAGE, -(-last // PAGE))
        starts = parts.read("starts", slice(pages.start, pages.stop + 1))
        _check_starts(starts, pages, count, parts.specs["values"].numel)
        places = _places(parts, count, starts, pages)
        _check_places(places, starts, pages, count)
        values = parts.read("values", slice(int(starts[0]), int(starts[-1])))
        inside = (places >= first) & (places < last)
        tensor = torch.zeros(last - first, dtype=compute_dtype(values.dtype))
        tensor[places[inside] - first] = values[inside].to(tensor.dtype)
        return tensor.reshape(rows_shape(shape, rows))

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        if _row(shape) > LONGEST:
            raise ContradictoryParts(f"a row of {_row(shape):,} entries, expected {LONGEST:,} at most")
        way = next((way for way in ("bits", *_LOCAL) if way in specs), "bits")
        return _specs(math.prod(shape), specs["values"].numel, floating(specs, "values"), way)


def _row(shape: Shape) -> int:
    return row_size(shape) if shape else 1


def _stacks(tensor: Entries) -> Stacks:
    """A tensor as rules see the deltas of one task; called ``""``."""
    return Stacks(
        {"": tensor.spec.shape},
        [""],
        lambda _: list(row_blocks(tensor.spec.shape)),
        lambda _, rows: iter([(tensor.read(rows)[None], {"_place": ANYWHERE})]),
    )


def _specs(count: int, kept: int, dtype: "torch.dtype", way: str) -> Specs:
    """All parts, if positions are stored in one of the ways."""
    starts = TensorSpec((-(-count // PAGE) + 1,), torch.int64)
    return {"values": TensorSpec((kept,), dtype), "starts": starts, **_ways(count, kept)[way]}


def _ways(count: int, kept: int) -> dict[str, Specs]:
    """The parts of every way to store positions."""
    return {
        "bits": {"bits": TensorSpec((packed_size(count),), torch.uint8)},
        "bytes": {
            "bytes": TensorSpec((kept,), torch.uint8),
            "counts": TensorSpec((-(-count // BLOCK),), torch.int16),
        },
        "words": {"words": TensorSpec((kept,), torch.uint16)},
    }


def _pieces(tensor: Entries, cut: Cut, way: str, dtype: "torch.dtype") -> "Iterator[tuple[str, int, Tensor]]":
    first = before = 0
    for flat in tensor.pieces(_TOGETHER):
        trimmed = trim(flat, cut, first)
        places = trimmed.nonzero().squeeze(1)
        yield "values", before, trimmed[places].to(dtype)
        yield "starts", first // PAGE, before + torch.searchsorted(places, torch.arange(0, len(flat), PAGE))
        if way == "bits":
            yield "bits", first // 8, pack(trimmed != 0)
        else:
            yield way, before, (places % _LOCAL[way]).to(torch.uint8 if way == "bytes" else torch.uint16)
        if way == "bytes":
            counts = torch.bincount(places // BLOCK, minlength=-(-len(flat) // BLOCK))
            yield "counts", first // BLOCK, counts.to(torch.int16)
        first, before = first + len(flat), before + len(places)
    yield "starts", -(-first // PAGE), torch.tensor([before])


def _places(parts: Parts, count: int, starts: "Tensor", pages: slice) -> "Tensor":
    """The row-major places of the values of some pages, from whichever part there is."""
    origin = pages.start * PAGE
    if "bits" in parts.specs:
        last = min(pages.stop * PAGE, count)
        kept = unpack(lambda octets: parts.read("bits", octets), origin, last)
        return torch.arange(origin, last)[kept]
    way, counts = "words", starts.diff()
    if "bytes" in parts.specs:
        blocks = PAGE // BLOCK
        way, counts = "bytes", parts.read("counts", slice(pages.start * blocks, pages.stop * blocks)).long()
    size = _LOCAL[way]
    if bool((counts < 0).any()) or int(counts.sum()) != int(starts[-1] - starts[0]):
        raise ContradictoryParts(_MISCOUNTED)
    local = parts.read(way, slice(int(starts[0]), int(starts[-1]))).long()
    parents = torch.arange(origin, origin + size * len(counts), size)
    return local.add_(parents.repeat_interleave(counts))


def _check_starts(starts: "Tensor", pages: slice, count: int, kept: int) -> None:
    meets_ends = (pages.start > 0 or starts[0] == 0) and (pages.stop * PAGE < count or starts[-1] == kept)
    if not meets_ends or starts[0] < 0 or starts[-1] > kept or bool((starts.diff() < 0).any()):
        raise ContradictoryParts("'starts' does not count the values")


def _check_places(places: "Tensor", starts: "Tensor", pages: slice, count: int) -> None:
    bounds = torch.arange(pages.start, pages.stop + 1) * PAGE
    in_order = bool((places.diff() > 0).all()) and (not len(places) or bool(places[-1] < count))
    if not in_order or not torch.equal(torch.searchsorted(places, bounds), starts - starts[0]):
        raise ContradictoryParts(_MISCOUNTED)


_MISCOUNTED = "the positions are out of order, or not as many as 'starts' says"
