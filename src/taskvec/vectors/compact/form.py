"""What the forms of compact tensors have in common."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from taskvec.config import Config
from taskvec.weights import TensorSpec
from taskvec.weights.dtypes import EDITABLE
from taskvec.weights.source import row_count, row_size, rows_of

Shape = tuple[int, ...]
Specs = Mapping[str, TensorSpec]

PLAIN = ""
"""The part of a tensor that is stored as it is, under its own name."""


@dataclass(frozen=True)
class Parts:
    """What a tensor is stored as, read part by part.

    Attributes:
        specs: shape and dtype of every part.
        read: a part, and a slice of its first axis or ``None`` -> that piece.
    """

    specs: Specs
    read: Callable[[str, slice | None], Tensor]

    @classmethod
    def held(cls, tensors: Mapping[str, Tensor]) -> "Parts":
        """Parts that are at hand."""
        specs = {part: TensorSpec(tuple(value.shape), value.dtype) for part, value in tensors.items()}
        return cls(specs, lambda part, rows: rows_of(tensors[part], rows))


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
    def encode(self, tensor: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parts of a finite tensor, float32 or float64, with floats in ``dtype``."""

    @abstractmethod
    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> Tensor:
        """The tensor of this shape, or rows of it (a slice of step 1), in the dtype of computing.

        Raises: ContradictoryParts for content that no tensor is encoded to.
        """

    @abstractmethod
    def layout(self, shape: Shape, specs: Specs) -> Specs:
        """What the parts of a tensor of this shape have to be, ``specs`` being what they are.

        Raises: KeyError for a part without which this cannot be said; ContradictoryParts for a shape that is
            not stored in parts.
        """


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


def floating(specs: Specs, part: str) -> torch.dtype:
    """The dtype of a part if it is floating point, as it has to be; float32 if it is not."""
    dtype = specs[part].dtype
    return dtype if dtype in EDITABLE else torch.float32
