"""SLERP of two and more points: slerp, nuslerp, multislerp, karcher."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules import mean, sphere
from taskvec.rules.sphere import Coefficients, Of, Per

_TINY = 1e-8

_STRAIGHT = (1 - 0.9995**2) ** 0.5
"""The sine of the angle below which mergekit walks along the chord."""

_CANCELLED = 1e-6
"""How long a mean of unit vectors has to be to have a direction that is not rounding."""


def slerp(
    deltas: Tensor,
    *,
    t: Annotated[float, Field(ge=0, le=1)] = 0.5,
    of: Of = "weights",
    per: Per = "tensor",
    _base: Tensor | None = None,
    _factors: Tensor | None = None,
) -> Tensor:
    """Walk from the first model to the second along the arc between them.

        merged point = sin((1 - t) w) / sin(w) p_0 + sin(t w) / sin(w) p_1,      w = angle(p_0, p_1)

    Args:
        deltas: (2, *shape).
        t: 0 is the first, 1 the second.
        of: the points are the fine-tuned ``weights``, or the task ``vectors`` themselves.
        per: one arc for each ``tensor``, ``row`` or ``column``.

    A straight line where |cos w| > 0.9995; for opposite points it passes near zero.
    Source: Shoemake 1985, as in mergekit.
    """
    return sphere.blend(deltas, _slerp(t=t), sphere.origin(of, _base), per, _factors)


def nuslerp(
    deltas: Tensor,
    *,
    weights: Sequence[float] | None = None,
    per: Per = "tensor",
    _factors: Tensor | None = None,
) -> Tensor:
    """SLERP of two task vectors, by weights.

        t = w_1 / (w_0 + w_1);      merged = slerp(tau_0, tau_1, t)

    Args:
        deltas: (2, *shape).
        weights: of the two, equal by default; their sum must not vanish.
        per: one arc for each ``tensor``, ``row`` or ``column``.

    A straight line only where |sin w| < 1e-6: parallel or opposite vectors, to rounding.
    Source: mergekit (nuslerp with a base model).
    """
    return sphere.blend(deltas, _nuslerp(weights=weights), per=per, measured=_factors)


def multislerp(
    deltas: Tensor,
    *,
    weights: Sequence[float] | None = None,
    of: Of = "vectors",
    _base: Tensor | None = None,
    _factors: Tensor | None = None,
) -> Tensor:
    """The weighted mean direction of several points, with their weighted mean norm.

        merged point = (sum_t w_t |p_t|) u / |u|,      u = sum_t w_t p_t / |p_t|,      sum_t w_t = 1

    Args:
        deltas: (task, *shape).
        weights: one for each task, equal by default; divided by their sum.
        of: the points are the task ``vectors``, or the fine-tuned ``weights``.

    mergekit's step in the tangent space at u / |u| is zero by construction, which leaves this.
    Where the directions cancel there is no mean direction, and the points are averaged.
    Source: mergekit (multislerp).
    """
    return sphere.blend(deltas, _multislerp(weights=weights), sphere.origin(of, _base), measured=_factors)


def karcher(
    deltas: Tensor,
    *,
    max_iter: Annotated[int, Field(ge=0)] = 10,
    tol: Annotated[float, Field(gt=0)] = 1e-5,
    of: Of = "weights",
    _base: Tensor | None = None,
    _factors: Tensor | None = None,
) -> Tensor:
    """The point on the sphere nearest to all, by arc length, with their mean norm.

        m   = argmin_m sum_t angle(m, p_t)^2 over |m| = 1
        merged point = mean_t |p_t| m

    Args:
        deltas: (task, *shape).
        max_iter: steps m <- exp_m(mean_t log_m(p_t / |p_t|)) from the mean direction.
        tol: stop at a step shorter than this.
        of: the points are the fine-tuned ``weights``, or the task ``vectors``.

    Zero points have no direction and count for the norm alone. Where the directions cancel the points are
    averaged.
    Source: Karcher 1977; as in mergekit.
    """
    return sphere.blend(
        deltas, _karcher(max_iter=max_iter, tol=tol), sphere.origin(of, _base), measured=_factors
    )


def _slerp(*, t: float, **_: object) -> Coefficients:
    return partial(_arc, t=t, straight=_STRAIGHT)


def _nuslerp(*, weights: Sequence[float] | None, **_: object) -> Coefficients:
    return partial(_arc, t=mean.coefficients(2, weights=weights)[1], straight=1e-6)


def _multislerp(*, weights: Sequence[float] | None, **_: object) -> Coefficients:
    return partial(_mean_direction, weights=weights)


def _karcher(*, max_iter: int, tol: float, **_: object) -> Coefficients:
    return lambda gram: _nearest(gram[0], max_iter, tol)[None]


def _arc(gram: Tensor, t: float, straight: float) -> Tensor:
    """The coefficients on the arc; (1 - t, t) where its sine is below ``straight``."""
    angle = sphere.cosines(gram, _TINY)[:, 0, 1].arccos()
    curved = angle.sin() >= straight
    sine = torch.where(curved, angle.sin(), 1.0)
    first = torch.where(curved, torch.sin((1 - t) * angle) / sine, 1 - t)
    return torch.stack([first, torch.where(curved, torch.sin(t * angle) / sine, t)], dim=1)


def _mean_direction(gram: Tensor, weights: Sequence[float] | None) -> Tensor:
    shares = torch.tensor(mean.coefficients(gram.shape[1], weights=weights), dtype=torch.float64)
    size = sphere.norms(gram)
    unit = shares / torch.where(size > 0, size, 1.0)
    length = torch.einsum("rt,rts,rs->r", unit, gram, unit).clamp(min=0).sqrt()[:, None]
    flat = length < _CANCELLED
    return torch.where(flat, shares, (size @ shares)[:, None] * unit / torch.where(flat, 1.0, length))


def _nearest(gram: Tensor, max_iter: int, tol: float) -> Tensor:
    size = gram.diagonal().clamp(min=0).sqrt()
    valid = size > 0
    share = valid.double() / valid.sum().clamp(min=1)
    cosine = sphere.cosines(gram[None])[0]
    if _length(share, cosine) < _CANCELLED:
        return torch.full_like(size, 1 / len(size))
    mean = share / _length(share, cosine)
    for _ in range(max_iter):
        dots = (cosine @ mean).clamp(-1, 1)
        angles = dots.arccos()
        moved = share * torch.where(angles.sin() > _TINY, angles / angles.sin().clamp(min=_TINY), 0.0)
        step = moved - (moved @ dots) * mean
        length = _length(step, cosine)
        if length < tol:
            break
        mean = length.cos() * mean + length.sin() * step / length
        mean = mean / _length(mean, cosine)
    return torch.where(valid, size.mean() * mean / size.clamp(min=1e-300), 0.0)


def _length(coefficients: Tensor, cosine: Tensor) -> Tensor:
    return (coefficients @ cosine @ coefficients).clamp(min=0).sqrt()


BASE = "deltas, base"

SLERP = sphere.rule("slerp", slerp, _slerp, consumes=BASE, tasks=(2, 2))
NUSLERP = sphere.rule("nuslerp", nuslerp, _nuslerp, tasks=(2, 2), check=mean.check_sum)
MULTISLERP = sphere.rule("multislerp", multislerp, _multislerp, consumes=BASE, check=mean.check_sum)
KARCHER = sphere.rule("karcher", karcher, _karcher, consumes=BASE)
