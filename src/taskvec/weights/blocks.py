"""Tensors by their shapes: rows, and blocks of them that stay in cache."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from taskvec.weights.dtypes import EDITABLE, code_of, dtype_of, name_of, short, size_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Block = TypeVar("Block", "Tensor", NDArray[Any])
"""Some rows of a tensor: torch's, or an array as ``Weights.read_array`` gives it."""

BLOCK = 1 << 19
"""Elements that are read, computed, written and digested at a time, so that they stay in cache from one step
to the next; another number would make other fingerprints."""


@dataclass(frozen=True, slots=True, init=False)
class TensorSpec:
    """What a header says of a tensor.

    Attributes:
        shape: of the tensor.
        code: of its element type, as in safetensors files.
    """

    shape: tuple[int, ...]
    code: str

    def __init__(self, shape: tuple[int, ...], dtype: "torch.dtype | str") -> None:
        """A spec of a shape and an element type: torch's, or its name there, or its code."""
        code = code_of(dtype) or short(dtype)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "code", code)

    def __repr__(self) -> str:
        return f"TensorSpec(shape={self.shape}, dtype=torch.{name_of(self.code)})"

    @property
    def dtype(self) -> "torch.dtype":
        """The element type. It takes the import of torch, which ``code`` does not."""
        return dtype_of(self.code)

    @property
    def itemsize(self) -> int:
        """The bytes of an element."""
        return size_of(self.code)

    @property
    def editable(self) -> bool:
        """Whether deltas are taken of it: of floating-point numbers of 16 bits or more."""
        return self.code in EDITABLE

    @property
    def floating(self) -> bool:
        """Whether its entries are floating-point numbers."""
        return "float" in name_of(self.code)

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes when stored densely."""
        return self.numel * self.itemsize


def row_blocks(shape: tuple[int, ...], multiple: int = 1) -> Iterator[slice | None]:
    """Slices of the rows of about ``BLOCK`` elements; ``None`` where one block is enough.

    Each begins at a ``multiple`` of rows.

    The rows of a tensor are its entries along all axes but the last, or along its only axis.
    """
    step = block_step(shape)
    if step is None:
        yield None
        return
    rows, step = row_count(shape), max(step // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def rows_shape(shape: tuple[int, ...], rows: slice | None) -> tuple[int, ...]:
    """The shape of some rows of a tensor: of more than two axes, all but the last are one then."""
    if rows is None:
        return shape
    return (len(range(*rows.indices(row_count(shape)))), *shape[1:][-1:])


def rows_of(tensor: Block, rows: slice | None) -> Block:
    """Some rows of a tensor, or of an array."""
    if rows is None:
        return tensor
    shape = tuple(tensor.shape)
    return (tensor.reshape(row_count(shape), row_size(shape)) if len(shape) > 2 else tensor)[rows]


def row_count(shape: tuple[int, ...]) -> int:
    """How many rows a tensor has."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


def row_size(shape: tuple[int, ...]) -> int:
    """How many elements a row has."""
    return 1 if len(shape) == 1 else shape[-1]


def block_step(shape: tuple[int, ...]) -> int | None:
    """How many rows a block has; ``None`` where one block is enough."""
    return None if math.prod(shape) <= BLOCK else max(1, BLOCK // row_size(shape))


def block_size(shape: tuple[int, ...], *, whole: bool = False) -> int:
    """Elements of the largest of the ``row_blocks``."""
    numel = math.prod(shape)
    return numel if whole or not shape else min(numel, max(BLOCK, row_size(shape)))
