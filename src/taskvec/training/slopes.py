"""Gradients of several tasks side by side: their inner products, their weighted sum, and pieces that fit."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Slopes = list[Tensor | None]
"""A gradient, leaf by leaf; none for a leaf that a task does not touch, which counts as zero."""

_CACHED = 1 << 16
"""Entries that are multiplied at once on a CPU: so many of eight tasks stay in its cache."""


def gram_of(rows: Sequence[Slopes]) -> Tensor:
    """Inner products of the tasks' gradients, (task, task) float64 on the CPU.

    Products are summed in the gradients' own precision within a block of entries, and in float64 over blocks.
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for slopes in zip(*rows, strict=True):
        known = next((slope for slope in slopes if slope is not None), None)
        if known is not None:
            total += _products(slopes, known)
    return total


def _products(slopes: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Of one leaf. Copying a block of every task into the cache is all that reads them."""
    size = _CACHED if like.device.type == "cpu" else like.numel()
    flat = [None if slope is None else slope.reshape(-1) for slope in slopes]
    buffer = like.new_zeros(len(slopes), min(size, like.numel()))
    total = like.new_zeros(len(slopes), len(slopes), dtype=torch.float64)
    for first in range(0, like.numel(), max(1, size)):
        block = buffer[:, : min(size, like.numel() - first)]
        for row, values in zip(block, flat, strict=True):
            if values is not None:
                row.copy_(values[first : first + len(row)])
        total += (block @ block.mT).double()
    return total.cpu()


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
