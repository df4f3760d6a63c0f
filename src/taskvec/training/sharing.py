"""One training in several processes: gradients summed over them, and what must be the same in all."""

from collections.abc import Callable, Mapping, Sequence

import torch
import xxhash
from torch import Tensor

from taskvec.group import Group
from taskvec.models.sharding import is_sharded, local_rows
from taskvec.training.slopes import Slopes, taken

Terms = list[Sequence[Tensor]]
"""Scalars that a loss is the sum of, of one loss or several."""


def add_shared(group: Group, leaves: Sequence[Tensor], add: Callable[[], Terms]) -> Terms:
    """Call ``add``, which adds gradients to leaves, for this process's share; and add what the others' shares
    give.

    All gradients and losses of a step travel in one flat tensor.

    Returns: each loss of all processes, as one term.
    """
    if group.alone:
        return add()
    own = [leaf for leaf in leaves if not is_sharded(leaf)]  # gradients of the others come summed
    before = taken(own)
    sums = [_summed(terms, local_rows(leaves[0])) for terms in add()]
    flat = torch.cat([*(_flat(leaf) for leaf in own), torch.stack(sums)])
    group.sum_(flat)
    *slopes, losses = torch.split(flat, [*(leaf.numel() for leaf in own), len(sums)])
    _put(own, slopes, before)
    return [[loss] for loss in losses.unbind()]


def _summed(terms: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.stack([like.new_zeros(()), *(term.to(like) for term in terms)]).sum()


def _flat(leaf: Tensor) -> Tensor:
    """The gradient of a leaf, which has none from then on."""
    slope, leaf.grad = leaf.grad, None
    return leaf.new_zeros(leaf.numel()) if slope is None else slope.reshape(-1)


def _put(leaves: Sequence[Tensor], slopes: Sequence[Tensor], before: Slopes) -> None:
    for leaf, slope, more in zip(leaves, slopes, before, strict=True):
        leaf.grad = slope.view_as(leaf) if more is None else slope.view_as(leaf) + more


def check_same(group: Group, facts: Mapping[str, object]) -> None:
    """Refuse to train together what is not the same training. Raises: InputError, in all processes."""
    for name, fact in facts.items():
        group.same(name, xxhash.xxh3_64_hexdigest(repr(fact).encode()))
