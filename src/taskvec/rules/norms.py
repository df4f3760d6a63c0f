"""Bringing what is left of deltas back to the size that they had."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def l1_ratios(pieces: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """For each task the factor that restores the L1 norm of a tensor; 1 where nothing is left of it.

    Args:
        pieces: deltas (task, *rows) and what is left of them, one or more.
    """
    before = after = torch.zeros(())
    for whole, left in pieces:
        before, after = before + _sizes(whole), after + _sizes(left)
    return torch.where(after > 0, before / after, 1.0).tolist()


def rescaled(deltas: Tensor, ratios: Sequence[float]) -> Tensor:
    """The deltas (task, *rows) of each task times its factor."""
    return deltas * torch.tensor(ratios, dtype=deltas.dtype).reshape(-1, *[1] * (deltas.dim() - 1))


def _sizes(stack: Tensor) -> Tensor:
    """The L1 norm of each task, float64."""
    return stack.reshape(len(stack), -1).abs().sum(1, dtype=torch.float64)
