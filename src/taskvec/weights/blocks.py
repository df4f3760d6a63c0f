"""Tensors by their shapes: rows, and blocks of them that stay in cache."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 1 << 19
"""Elements that are read, computed, written and digested at a time, so that they stay in cache from one step
to the next; another number would make other fingerprints."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size in bytes when stored densely."""
        return self.numel * self.dtype.itemsize


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


def rows_of(tensor: Tensor, rows: slice | None) -> Tensor:
    """Some rows of a tensor."""
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
