"""Masks over task vectors: which units of each tensor move, and what other tasks' masks say of a new one."""

import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Literal, get_args

import torch
import xxhash
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError, first_few

Masks = Mapping[str, Tensor]
"""By parameter, bool: of its shape, or (rows,) for whole rows (filters, units of a layer)."""

Unit = Literal["row", "entry"]


@checked
def largest(vector: Mapping[str, Tensor], keep: float, unit: Unit = "row") -> dict[str, Tensor]:
    """Of each tensor the units that it changes most: the share ``keep`` of its rows, by norm, or entries.

    At least one unit of each is kept, of equals the first; tensors that do not change are left out.

    Raises: InputError for a share outside 0 to 1, or a unit that is none.
    """
    check_share(keep)
    if unit not in get_args(Unit):
        raise InputError(f"unit: {unit!r}, expected {' or '.join(get_args(Unit))}")
    sizes = {name: _sizes(vector[name], unit) for name in vector}
    return {name: _top(of, keep) for name, of in sizes.items() if bool(of.any())}


@checked
def mask_vote(
    masks: Mapping[str, Masks],
    similarity: Mapping[str, float],
    k: int | None = None,
    keep: float | None = None,
) -> dict[str, Tensor]:
    """The first mask of a new task, by votes of its ``k`` nearest tasks; 3 by default, or all of fewer.

        score of a unit = sum_t s_t mask_t / sum_t s_t   over the k most similar t,  s_t = max(similarity, 0)

    In each tensor the units with the highest scores are kept, of equals the first. With one neighbour, or
    neighbours that agree, the mask is theirs.

    Args:
        masks: by task, of one model and one kind of unit; a tensor that a mask lacks is not kept by it.
        similarity: of the new task to each, such as the cosine of prototypes (mean features of inputs) or of
            vectors. Where none of the k is above 0, they vote alike.
        keep: share of the units of each tensor; by default the mean share of the voters, by similarity.

    Raises: InputError for masks that do not fit together, a k outside 1 to T, or a share outside 0 to 1.
    Source: our reading of Meta-Vote Pruning (arXiv:2301.11560), whose abstract is all that we know of it.
    """
    k = min(3, len(masks)) if k is None else k
    _check_votes(masks, similarity, k)
    if keep is not None:
        check_share(keep)
    voters = sorted(masks, key=lambda task: (-similarity[task], task))[:k]
    weights = [max(similarity[task], 0.0) for task in voters]
    weights = weights if any(weights) else [1.0] * k
    scores = {name: _score(of, weights) for name, of in _by_tensor([masks[task] for task in voters])}
    if keep is None:
        return {name: _top(score, float(score.mean()), least=0) for name, score in scores.items()}
    return {name: _top(score, keep) for name, score in scores.items()}


def entries_of(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of rows or of entries in the shape of a tensor. Raises: InputError for another shape."""
    if mask.dtype != torch.bool or mask.shape not in (like.shape, like.shape[:1]):
        raise InputError(
            f"shape {tuple(mask.shape)} and dtype {str(mask.dtype).removeprefix('torch.')}, expected bool "
            f"{tuple(like.shape)}, or {tuple(like.shape[:1])} for whole rows"
        )
    return mask if mask.ndim == like.ndim else mask.view(-1, *[1] * (like.ndim - 1)).expand_as(like)


def fitted(mask: Masks, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A mask in the shapes of what is trained, without tensors of which nothing is kept.

    Raises: InputError for a name or shape that is not there, or where nothing is left to train.
    """
    made = {}
    for name, of in mask.items():
        if name not in start:
            near = get_close_matches(name, start, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"that is {first_few(list(start))}"
            raise InputError(f"mask: {name!r} is not among what is trained; {hint}")
        try:
            made[name] = entries_of(of, start[name])
        except InputError as error:
            raise InputError(f"mask: {name!r}: {error}") from None
    kept = {name: of for name, of in made.items() if bool(of.any())}
    if not kept:
        raise InputError("mask: keeps nothing, expected some units to train")
    return kept


def digest_of(mask: Masks) -> str:
    """Of all that it keeps."""
    digest = xxhash.xxh3_128()
    for name in sorted(mask):
        digest.update(f"{name} {tuple(mask[name].shape)}".encode())
        digest.update(mask[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _sizes(delta: Tensor, unit: Unit) -> Tensor:
    """How much each unit changes: the norms of rows, or magnitudes."""
    wide = delta.detach().double()
    return wide.flatten(1).norm(dim=1) if unit == "row" and wide.ndim > 1 else wide.abs()


def _top(scores: Tensor, keep: float, least: int = 1) -> Tensor:
    """The share of entries with the highest scores, bool."""
    count = max(least, round(keep * scores.numel()))
    order = scores.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    kept[order[:count].cpu()] = True
    return kept.view(scores.shape)


def _by_tensor(masks: list[Masks]) -> Iterator[tuple[str, list[Tensor]]]:
    """Each tensor with its mask by every voter."""
    for name in dict.fromkeys(name for mask in masks for name in mask):
        like = next(mask[name] for mask in masks if name in mask)
        yield name, [mask.get(name, torch.zeros_like(like)) for mask in masks]


def _score(masks: list[Tensor], weights: list[float]) -> Tensor:
    parts = [weight * mask.double() for weight, mask in zip(weights, masks, strict=True)]
    return torch.stack(parts).sum(0) / math.fsum(weights)


def check_share(keep: float) -> None:
    """Refuse a share outside 0 to 1. Raises: InputError."""
    if not 0 < keep <= 1:
        raise InputError(f"keep: {keep:g}, expected a share above 0 and at most 1")


def _check_votes(masks: Mapping[str, Masks], similarity: Mapping[str, float], k: int) -> None:
    if not masks:
        raise InputError("masks: none, expected those of one task or more")
    if not 1 <= k <= len(masks):
        raise InputError(f"k: {k}, expected 1 to {len(masks)}, the number of masks")
    shapes: dict[str, tuple[int, ...]] = {}
    for task, mask in masks.items():
        if not math.isfinite(similarity.get(task, math.nan)):
            raise InputError(f"similarity: {similarity.get(task)} for {task!r}, expected a number")
        for name, of in mask.items():
            shape = shapes.setdefault(name, tuple(of.shape))
            if of.dtype != torch.bool or tuple(of.shape) != shape:
                raise InputError(
                    f"{task}: the mask of {name!r} has shape {tuple(of.shape)} and dtype {of.dtype}, "
                    f"expected torch.bool and {shape} as the others"
                )
