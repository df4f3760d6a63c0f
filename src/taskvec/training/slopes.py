"""Gradients of several tasks side by side: their inner products, their weighted sum, and pieces that fit."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Slopes = list[Tensor | None]
"""A gradient, leaf by leaf; none for a leaf that a task does not touch, which counts as zero."""

_AT_ONCE = {"cpu": 1 << 16}
"""Entries of each gradient that are multiplied at once on a CPU: so many of eight tasks stay in its cache."""


def gram_of(rows: Sequence[Slopes]) -> Tensor:
    """Inner products of the tasks' gradients, (task, task) float64 on the CPU.

    Products are summed in the gradients' own precision within a block of entries, and in float64 over blocks.
    """
    blocks = [block for slopes in zip(*rows, strict=True) for block in _blocks(slopes)]
    if not blocks:
        return torch.zeros(len(rows), len(rows), dtype=torch.float64)
    return torch.stack(blocks).cpu().double().sum(0)


def _blocks(slopes: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """Products of one leaf's entries, block by block; a copy into the cache is all that reads them."""
    known = next((slope for slope in slopes if slope is not None), None)
    if known is None:
        return
    count, size = known.numel(), _AT_ONCE.get(known.device.type, 1 << 24)
    flat = [None if slope is None else slope.reshape(-1) for slope in slopes]
    buffer = known.new_zeros(len(slopes), min(size, count))
    for first in range(0, count, size):
        block = buffer[:, : min(size, count - first)]
        for row, values in zip(block, flat, strict=True):
            if values is not None:
                row.copy_(values[first : first + len(row)])
        yield block @ block.mT


def weighted(rows: Sequence[Slopes], weights: Sequence[float]) -> Slopes:
    """``sum_t w_t g_t``, leaf by leaf; the rows stay as they are."""
    return [_weighted(slopes, weights) for slopes in zip(*rows, strict=True)]


def _weighted(slopes: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor | None:
    total = None
    for slope, weight in zip(slopes, weights, strict=True):
        if slope is not None:
            total = slope * weight if total is None else total.add_(slope, alpha=weight)
    return total


def taken(leaves: Sequence[Tensor]) -> Slopes:
    """The gradients that lie in leaves, which have none from then on."""
    slopes = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return slopes


def groups_of(leaves: Sequence[Tensor], tasks: int, room: float) -> Iterator[list[int]]:
    """Places of leaves whose gradients of all tasks take at most ``room`` bytes together, or of a single one
    that takes more."""
    group: list[int] = []
    filled = 0
    for place, leaf in enumerate(leaves):
        size = tasks * leaf.numel() * leaf.element_size()
        if group and filled + size > room:
            yield group
            group, filled = [], 0
        group.append(place)
        filled += size
    yield group
