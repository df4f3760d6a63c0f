"""Fisher merging: each entry goes where the tasks that depend on it are."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import mean as averaging
from taskvec.rules import sum as addition
from taskvec.rules.rule import ANYWHERE, Place, Rule, Stacks
from taskvec.rules.statistics import CONSUMES, Statistics, given

NonNegative = Annotated[float, Field(ge=0)]


def fisher(
    deltas: Tensor,
    *,
    floor: NonNegative = 1e-6,
    normalize: bool = False,
    weights: Sequence[NonNegative] | None = None,
    _stats: Statistics | None = None,
    _norms: Sequence[float] | None = None,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Average the fine-tuned weights, every entry weighed by how much a task's predictions depend on it.

        merged = sum_t w_t (F_t + floor) tau_t / sum_t w_t (F_t + floor)

    Args:
        deltas: (task, *shape).
        floor: added to every F_t; entries in which all F_t are smaller are about averaged.
        normalize: divide w_t by the norm of F_t over all tensors, so that a task whose predictions are
            uncertain everywhere does not outweigh the others.
        weights: one for each task, 1 by default.

    F_t (*shape) is the diagonal of the Fisher information of model t, from ``taskvec stats``. Tensors without
    statistics are averaged.
    Source: Matena & Raffel 2022, arXiv:2111.09832. Public code adds the gradients of a batch up before it
    squares them, so that products of different examples enter.
    """
    factors = addition.coefficients(len(deltas), weights=weights)
    average = averaging.mean(deltas, weights=weights)
    information = given("fisher", _stats, deltas, deltas.shape[1:], _place)
    if information is None:
        return average
    if bool((information < 0).any()):
        raise InputError(
            f"rule 'fisher': {_place.name!r} has negative statistics, which no Fisher information is"
        )
    if _norms is not None:
        factors = [factor / (norm + 1e-6) for factor, norm in zip(factors, _norms, strict=True)]
    for of_task, factor in zip(information, factors, strict=True):
        of_task.add_(floor).mul_(factor)
    total = information.sum(0)
    return torch.where(total > 0, (information * deltas).sum(0) / total, average)


def measure_model(stacks: Stacks, *, normalize: bool, **_: Any) -> Mapping[str, Mapping[str, Any]] | None:
    """The norm of each task's Fisher information, over all tensors."""
    if not normalize:
        return None
    squares: list[list[float]] = []
    for name in stacks.changed:
        for deltas, context in stacks.pieces_of(name):
            information = given("fisher", context.get("_stats"), deltas, deltas.shape[1:], context["_place"])
            if information is not None:
                norms = (torch.linalg.vector_norm(of_task, dtype=torch.float64) for of_task in information)
                squares.append([float(norm) ** 2 for norm in norms])
    totals = [sum(of_task) ** 0.5 for of_task in zip(*squares, strict=True)]
    return {name: {"_norms": totals} for name in stacks.changed} if totals else None


def _check(tasks: int | None, *, weights: Sequence[float] | None, **_: object) -> str | None:
    if weights is not None and not sum(weights) > 0:
        return f"weights are {list(weights)}, expected one that is not zero"
    return None


FISHER = Rule("fisher", fisher, "model", consumes=CONSUMES, measure_model=measure_model, check=_check)
