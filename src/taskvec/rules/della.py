"""DELLA: drop at random, small entries more often."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.draws import RANGE, draws
from taskvec.rules.norms import l1_ratios, rescaled
from taskvec.rules.rule import ANYWHERE, Fraction, Place, Rule, Seed, Stacks, for_each, task_by_task

Window = Annotated[float, Field(ge=0, lt=0.5)]


def della(
    deltas: Tensor,
    *,
    density: Fraction | Sequence[Fraction] = 0.5,
    epsilon: Window | Sequence[Window] = 0.15,
    rescale: Literal["element", "l1"] | None = "element",
    seed: Seed = 0,
    _place: Place = ANYWHERE,
    _ratios: Sequence[float] | None = None,
) -> Tensor:
    """Drop entries of each task at random, the smaller the likelier, rescale, then add.

        p_i       = density - epsilon + 2 epsilon rank_i / (n - 1),     rank_i = 0 (smallest) .. n - 1
        dropped_i = m_i tau_i / p_i,                                    m_i ~ Bernoulli(p_i)

    Args:
        deltas: (task, *shape). Magnitudes are ranked within each row of (shape[0], -1); a tensor of
            one axis is a single row. A row of one entry has p = density.
        density: the mean probability of an entry to be kept; 1 keeps all. One for all tasks or one for each.
        epsilon: how far the probability of the smallest and of the largest entry of a row is from it. One
            for all tasks or one for each.
        rescale: divide by p_i (``element``), bring every tensor back to its L1 norm (``l1``), or neither.
        seed: as for ``dare``; with ``epsilon=0`` both give the same.

    The paper's window is ``density ± epsilon / 2``. mergekit's ``della`` is ``della+ties`` with
    ``rescale=l1, keep=1``, its ``della_linear`` is this rule with ``rescale=l1``.
    Source: Deep et al. 2024, arXiv:2406.11617 (MagPrune).
    """
    if not deltas.numel():
        return deltas.clone()
    pruned = _pruned(deltas, density, epsilon, rescale == "element", seed, _place)
    return pruned if _ratios is None else rescaled(pruned, _ratios)


def measure_tensor(
    stacks: Stacks,
    name: str,
    *,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    rescale: str | None,
    seed: int,
    **_: object,
) -> dict[str, list[float]]:
    """What brings each task back to its L1 norm in a tensor."""
    if rescale != "l1" or density == 1 or not stacks.numel(name):
        return {}
    pieces = (
        (deltas, _pruned(deltas, density, epsilon, False, seed, context["_place"]))
        for deltas, context in stacks.pieces_of(name)
    )
    return {"_ratios": l1_ratios(pieces)}


def _pruned(
    deltas: Tensor,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    scaled: bool,
    seed: int,
    place: Place,
) -> Tensor:
    """What is kept of each task, divided by the chance that it had if ``scaled`` says so."""
    kept = deltas.clone()
    shares = zip(kept, for_each(density, len(kept)), for_each(epsilon, len(kept)), strict=True)
    for vector, (delta, mean, window) in enumerate(shares):
        if mean < 1:
            chance = _chances(delta, mean, window)
            drawn = torch.from_numpy(draws(seed, vector, place, delta.numel()) / RANGE)
            delta.mul_(drawn.reshape(delta.shape) < chance)
            if scaled:
                delta.div_(chance)
    return kept


def _in_rows(
    name: str,
    shape: Sequence[int],
    *,
    density: float | Sequence[float],
    epsilon: float | Sequence[float],
    **_: Any,
) -> bool:
    return len(shape) == 2 or not any(mean < 1 and window for mean, window in task_by_task(density, epsilon))


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


def _check(
    tasks: int | None, *, density: float | Sequence[float], epsilon: float | Sequence[float], **_: object
) -> str | None:
    for mean, window in task_by_task(density, epsilon):
        if mean < 1 and not window < mean <= 1 - window:
            return f"epsilon {window:g} takes probabilities around density {mean:g} out of the range 0 to 1"
    return None


DELLA = Rule(
    "della",
    della,
    "tensor",
    stage="each",
    measure_tensor=measure_tensor,
    in_rows=_in_rows,
    check=_check,
    breaks=("order",),
)
