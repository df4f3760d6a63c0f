"""DELLA: drop at random, small entries more often."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.draws import RANGE, draws
from taskvec.rules.rule import ANYWHERE, Place, Rule, Stacks


def della(
    deltas: Tensor,
    *,
    density: Annotated[float, Field(gt=0, le=1)] = 0.5,
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] = 0.15,
    rescale: Literal["element", "l1"] | None = "element",
    seed: Annotated[int, Field(ge=0)] = 0,
    _place: Place = ANYWHERE,
    _ratios: Sequence[float] | None = None,
) -> Tensor:
    """Drop entries of each task at random, the smaller the likelier, rescale, then add.

        p_i       = density - epsilon + 2 epsilon rank_i / (n - 1),     rank_i = 0 (smallest) .. n - 1
        dropped_i = m_i tau_i / p_i,                                    m_i ~ Bernoulli(p_i)

    Args:
        deltas: (task, *shape). Magnitudes are ranked within each row of (shape[0], -1); a tensor of
            one axis is a single row. A row of one entry has p = density.
        density: the mean probability of an entry to be kept; 1 keeps all.
        epsilon: how far the probability of the smallest and of the largest entry of a row is from it.
        rescale: divide by p_i (``element``), bring every tensor back to its L1 norm (``l1``), or neither.
        seed: as for ``dare``; with ``epsilon=0`` both give the same.

    The paper's window is ``density ± epsilon / 2``. mergekit's ``della`` is ``della+ties`` with
    ``rescale=l1, keep=1``, its ``della_linear`` is this rule with ``rescale=l1``.
    Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune).
    """
    if density == 1 or not deltas.numel():
        return deltas.clone()
    kept = [_pruned(delta, density, epsilon, seed, n, _place) for n, delta in enumerate(deltas)]
    if rescale == "element":
        return torch.stack([pruned / chance.to(deltas.dtype) for pruned, chance in kept])
    pruned = torch.stack([one for one, _ in kept])
    if rescale is None:
        return pruned
    if _ratios is None:
        _ratios = _of(*_sizes(deltas, pruned))
    return pruned * torch.tensor(_ratios, dtype=deltas.dtype).reshape(-1, *[1] * (deltas.dim() - 1))


def measure(
    stacks: Stacks,
    name: str,
    *,
    density: float,
    epsilon: float,
    rescale: str | None,
    seed: int,
    **_: object,
) -> dict[str, list[float]]:
    """What brings each task back to its L1 norm in a tensor."""
    if rescale != "l1" or density == 1 or not stacks.numel(name):
        return {}
    before = after = torch.zeros(())
    for deltas, context in stacks.of(name):
        pruned = [_pruned(d, density, epsilon, seed, n, context["_place"])[0] for n, d in enumerate(deltas)]
        whole, left = _sizes(deltas, torch.stack(pruned))
        before, after = before + whole, after + left
    return {"_ratios": _of(before, after)}


def _sizes(*stacks: Tensor) -> list[Tensor]:
    """The L1 norm of each task in each stack, float64."""
    return [stack.reshape(len(stack), -1).abs().sum(1, dtype=torch.float64) for stack in stacks]


def _of(before: Tensor, after: Tensor) -> list[float]:
    return torch.where(after > 0, before / after, 1.0).tolist()


def _pruned(
    delta: Tensor, density: float, epsilon: float, seed: int, vector: int, place: Place
) -> tuple[Tensor, Tensor]:
    """What is kept of one task, and the chance that each entry had."""
    chance = _chances(delta, density, epsilon)
    drawn = torch.from_numpy(draws(seed, vector, place, delta.numel()) / RANGE).reshape(delta.shape)
    return delta * (drawn < chance), chance


def _in_rows(name: str, shape: Sequence[int], *, epsilon: float, **_: object) -> bool:
    return len(shape) > 1 or not epsilon


def _chances(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The probability of each entry to be kept, float64."""
    rows = delta.reshape(len(delta) if delta.dim() > 1 else 1, -1)
    length = rows.shape[1]
    if length < 2 or not epsilon:
        return torch.full(delta.shape, density, dtype=torch.float64)
    order = rows.abs().argsort(dim=1, stable=True)
    by_rank = torch.linspace(density - epsilon, density + epsilon, length, dtype=torch.float64)
    chances = torch.empty(rows.shape, dtype=torch.float64)
    return chances.scatter_(1, order, by_rank.expand_as(order)).reshape(delta.shape)


def _check(tasks: int | None, *, density: float, epsilon: float, **_: object) -> str | None:
    if density == 1 or epsilon < density <= 1 - epsilon:
        return None
    return f"epsilon {epsilon:g} takes probabilities around density {density:g} out of the range 0 to 1"


DELLA = Rule("della", della, "tensor", stage="each", measure=measure, in_rows=_in_rows, check=_check)
