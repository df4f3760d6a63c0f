"""A matrix's singular directions, each kept or left out of a merge, and the gradient in that choice."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.names import SELECTIONS, is_lookup
from taskvec.patterns import Pattern

TEMPERATURE = 10.0
"""Of the sigmoid that makes a logit a probability."""

SURE = 0.1
"""The logit of a direction that is kept at first; of one that is not, its negative."""


class Ranks(NamedTuple):
    """The singular directions of a matrix D (m, n): ``D = sum_k s_k u_k v_k^T``.

    Args:
        u: (m, r). s: (r,), descending. v: (r, n).
    """

    u: Tensor
    s: Tensor
    v: Tensor


class Choice(NamedTuple):
    """Which directions are kept, of logits (r,), and how that moves with them.

    Args:
        mask: (r,), 1 for what is kept, 0 for what is not.
        slope: (r,), d mask / d logit, taken to be that of the probability (straight-through).
    """

    mask: Tensor
    slope: Tensor


def choose(logits: Tensor, temperature: float = TEMPERATURE) -> Choice:
    """Keep what is likelier kept than not: ``sigmoid(logit / temperature) > 1/2``."""
    likely = (logits / temperature).sigmoid()
    return Choice((likely > 0.5).to(logits), likely * (1 - likely) / temperature)


def first_logits(count: int, kept: int) -> Tensor:
    """Logits (count,), float64, that keep the first so many directions."""
    return torch.where(torch.arange(count) < kept, SURE, -SURE).double()


def add_ranks(into: Tensor, ranks: Ranks, factor: float, mask: Tensor) -> None:
    """Add ``factor U diag(mask s) V`` to a matrix (m, n), of a mask (r,), hard or soft.

    Cost: one product of matrices with as many columns as directions are kept.
    """
    strength = factor * mask.to(ranks.s) * ranks.s
    kept = strength.nonzero().squeeze(1)
    if len(kept) == len(strength):
        into.addmm_(ranks.u * strength, ranks.v)
    else:
        into.addmm_(ranks.u[:, kept] * strength[kept], ranks.v[kept])


def along_ranks(ranks: Ranks, slope: Tensor) -> Tensor:
    """``s_k u_k^T G v_k`` (r,), of a loss whose gradient in the merged matrix is G (m, n).

    No graph goes through the merge ``a sum_k mask_k s_k u_k v_k^T``:

        dL/da = sum_k mask_k s_k u_k^T G v_k,      dL/dmask_k = a s_k u_k^T G v_k
    """
    return ((ranks.u.T @ slope) * ranks.v).sum(1) * ranks.s


def ranked_matrices(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The matrices of attention and feed-forward layers; in a network that calls none of its layers so, all
    that are no tables to look up rows in."""
    matrices = [name for name, shape in shapes.items() if len(shape) == 2 and not is_lookup(name)]
    known = [Pattern(SELECTIONS[part], "selection") for part in ("attention", "mlp")]
    inside = [name for name in matrices if any(pattern.fullmatch(name) for pattern in known)]
    return inside or matrices
