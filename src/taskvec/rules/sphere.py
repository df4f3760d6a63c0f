"""Rules on a sphere: what they give lies in the span of their inputs, and its place there depends on angles.

So each is a function from the inner products of the points to the coefficient of each point. The points are
task vectors, or the weights that these lead to.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from taskvec.rules.rule import Rule, Stacks, present

Of = Literal["weights", "vectors"]
Per = Literal["tensor", "row", "column"]
Coefficients = Callable[[Tensor], Tensor]
"""Inner products (row, task, task) -> the coefficient of each point (row, task), float64."""


def blend(
    deltas: Tensor,
    coefficients: Coefficients,
    base: Tensor | None = None,
    per: Per = "tensor",
    measured: Tensor | None = None,
) -> Tensor:
    """``sum_t c_t point_t`` as a task vector: ``sum_t c_t tau_t + (sum_t c_t - 1) base``.

    Args:
        deltas: (task, *shape).
        coefficients: from inner products in float64.
        base: the points are ``base + tau_t``; ``None`` for the task vectors themselves.
        per: whether a whole tensor is a point, or each row of (shape[0], -1), or each column of it.
        measured: the coefficients of the whole tensor, (1, task), if ``deltas`` are some of its rows.
    """
    if not deltas.numel():
        return deltas[0].clone()
    rows = _rows(deltas, per)
    origin = None if base is None else _rows(base[None], per)[0]
    factors = coefficients(_gram(rows, origin)) if measured is None else measured
    merged = torch.einsum("rt,trn->rn", factors.to(rows.dtype), rows)
    if origin is not None:
        merged = merged + (factors.sum(1, keepdim=True) - 1).to(rows.dtype) * origin
    return _back(merged, deltas.shape[1:], per)


def rule(
    name: str, function: Callable[..., Tensor], coefficients: Callable[..., Coefficients], **more: Any
) -> Rule:
    """The rule whose coefficients are those that its parameters lead to."""
    per = "per" in inspect.signature(function).parameters
    measure = partial(_measure, coefficients)
    in_rows = _in_rows if per else None
    return Rule(name, function, "tensor", measure_tensor=measure, in_rows=in_rows, copies=(3, 9), **more)


def _measure(
    coefficients: Callable[..., Coefficients],
    stacks: Stacks,
    name: str,
    of: Of = "vectors",
    per: Per = "tensor",
    **settings: Any,
) -> dict[str, Tensor]:
    """The coefficients of a whole tensor, unless each of its rows or columns has its own."""
    shape = stacks.shapes[name]
    if (per != "tensor" and len(shape) > 1) or 0 in shape:
        return {}
    gram = torch.zeros((), dtype=torch.float64)
    for deltas, context in stacks.pieces_of(name):
        base = origin(of, context.get("_base"))
        gram = gram + _gram(_rows(deltas, "tensor"), None if base is None else base.reshape(1, -1))
    return {"_factors": coefficients(**settings)(gram)}


def _in_rows(name: str, shape: Sequence[int], *, per: Per = "tensor", **_: object) -> bool:
    """Whether rows can be had by themselves: not where columns have coefficients of their own."""
    return per == "tensor" or len(shape) < 2 or (per == "row" and len(shape) == 2)


def _gram(rows: Tensor, origin: Tensor | None) -> Tensor:
    """Inner products (row, task, task) of points (task, row, n) seen from an origin, float64."""
    points = rows.double() if origin is None else rows.double() + origin.double()
    return torch.einsum("trn,srn->rts", points, points)


def origin(of: Of, base: Tensor | None) -> Tensor | None:
    """Where the points begin: at the base's weights for ``of="weights"``, else at zero.

    Raises: InputError if the weights are needed and not at hand.
    """
    return present(base) if of == "weights" else None


def norms(gram: Tensor) -> Tensor:
    """The norm of each point, (row, task)."""
    return gram.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()


def cosines(gram: Tensor, floor: float = 0.0) -> Tensor:
    """The cosine of each pair; points up to the norm ``floor`` count as they are, not normalised."""
    size = norms(gram)
    size = torch.where(size > floor, size, 1.0)
    return (gram / size[:, :, None] / size[:, None, :]).clamp(-1, 1)


def _rows(tensor: Tensor, per: Per) -> Tensor:
    """(task, *shape) as points (task, row, n)."""
    if per == "tensor" or tensor.dim() < 3:
        return tensor.reshape(len(tensor), 1, -1)
    rows = tensor.reshape(*tensor.shape[:2], -1)
    return rows if per == "row" else rows.mT


def _back(rows: Tensor, shape: torch.Size, per: Per) -> Tensor:
    turned = per == "column" and len(shape) > 1
    return (rows.mT if turned else rows).reshape(shape)
