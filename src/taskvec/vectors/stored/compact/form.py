"""What the forms of compact tensors have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from taskvec.config import Config
from taskvec.later import torch
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import BLOCK, row_blocks, row_count, row_size
from taskvec.weights.dtypes import is_editable

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]
Specs = Mapping[str, TensorSpec]

PLAIN = ""
"""The part of a tensor that is stored as it is, under its own name."""

_COPIES = 8
"""Of a block, while it is encoded, decoded and compared."""


@dataclass(frozen=True)
class Parts:
    """What a tensor is stored as, among other weights.

    Attributes:
        weights: that hold the parts.
        name: of the tensor.
        specs: shape and dtype of every part.
    """

    weights: Weights
    name: str
    specs: Specs

    def read(self, part: str, rows: slice | None) -> "Tensor":
        """A part, or rows of it."""
        return self.weights.read(part_name(self.name, part), rows)


@dataclass(frozen=True)
class Entries:
    """A finite tensor, float32 or float64, that is read some rows at a time, as often as it takes.

    Attributes:
        spec: shape and dtype.
        read: a slice of its rows, or ``None`` for all -> these rows.
    """

    spec: TensorSpec
    read: "Callable[[slice | None], Tensor]"

    def pieces(self, size: int) -> "Iterator[Tensor]":
        """So many entries at a time, in row-major order, flat; each piece takes the memory of the last."""
        piece = torch.empty(min(size, self.spec.numel), dtype=self.spec.dtype)
        filled = 0
        for rows in row_blocks(self.spec.shape):
            left = self.read(rows).reshape(-1)
            while len(left):
                taken = left[: len(piece) - filled]
                piece[filled : filled + len(taken)] = taken
                left, filled = left[len(taken) :], filled + len(taken)
                if filled == len(piece):
                    yield piece
                    filled = 0
        if filled:
            yield piece[:filled]


class Coded(NamedTuple):
    """What a tensor becomes.

    Attributes:
        specs: of every part.
        pieces: part, its row or entry from which on, and what lies there; computed as they are taken.
    """

    specs: Specs
    pieces: "Iterator[tuple[str, int, Tensor]]"


class ContradictoryParts(ValueError):
    """The content of the parts is not what any tensor is encoded to."""


class Form(Config, ABC):
    """A way to store a tensor in fewer bytes; its fields are its parameters."""

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    """All that a tensor may be stored as."""
    takes_dtype: ClassVar[bool] = True
    """Whether the element type of what is stored as floats is the user's choice."""

    @abstractmethod
    def encode(self, tensor: Entries, dtype: "torch.dtype") -> Coded:
        """The parts of a tensor, with floats in ``dtype``."""

    def working_bytes(self, shape: Shape, dtype: "torch.dtype") -> int:
        """Bytes that encoding a tensor of this shape in this precision takes, beside reading it; at most."""
        return _COPIES * dtype.itemsize * min(math.prod(shape), max(BLOCK, row_size(shape) if shape else 1))

    @abstractmethod
    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> "Tensor":
        """The tensor of this shape, or rows of it (a slice of step 1), in the dtype of computing.

        Raises: ContradictoryParts for content that no tensor is encoded to.
        """

    @abstractmethod
    def layout(self, shape: Shape, specs: Specs) -> Specs:
        """What the parts of a tensor of this shape have to be, ``specs`` being what they are.

        Raises: KeyError for a part without which this cannot be said; ContradictoryParts for a shape that is
            not stored in parts.
        """


def plain(tensor: Entries, dtype: "torch.dtype") -> Coded:
    """A tensor as it is, in ``dtype``."""
    pieces = (
        (PLAIN, 0 if rows is None else rows.start, tensor.read(rows).to(dtype))
        for rows in row_blocks(tensor.spec.shape)
    )
    return Coded({PLAIN: TensorSpec(tensor.spec.shape, dtype)}, pieces)


def part_name(name: str, part: str) -> str:
    """The name in the file of a part of ``name``."""
    return f"{name}#{part}" if part else name


def entries(shape: Shape, rows: slice | None) -> tuple[int, int]:
    """The first of the row-major entries that rows (a slice of step 1) hold, and the first after them."""
    if rows is None:
        return 0, math.prod(shape)
    first, last, _ = rows.indices(row_count(shape))
    width = row_size(shape)
    return first * width, max(first, last) * width


def floating(specs: Specs, part: str) -> "torch.dtype":
    """The dtype of a part if it is floating point, as it has to be; float32 if it is not."""
    dtype = specs[part].dtype
    return dtype if is_editable(dtype) else torch.float32


def packed_size(count: int) -> int:
    """Bytes of ``count`` truth values, eight to a byte."""
    return -(-count // 8)


def pack(flags: "Tensor") -> "Tensor":
    """The flags in row-major order, the first in the lowest bit: uint8 (bytes,)."""
    return torch.from_numpy(np.packbits(flags.reshape(-1).numpy(), bitorder="little"))


def unpack(read: "Callable[[slice], Tensor]", first: int, last: int) -> "Tensor":
    """The flags from place ``first`` to before ``last``, bool (last - first,), of bytes read for it."""
    octets = read(slice(first // 8, packed_size(last))).numpy()
    flags = np.unpackbits(octets, count=first % 8 + last - first, bitorder="little")
    return torch.from_numpy(flags[first % 8 :].view(np.bool_))
