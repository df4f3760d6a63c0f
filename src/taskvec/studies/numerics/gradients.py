"""Task vectors as gradients: how far a sum of task vectors is from multi-task gradient descent."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError, TaskvecError
from taskvec.progress import Watch, unwatched

Params = Mapping[str, Tensor]
Loss = Callable[[Params], Tensor]
"""Parameters by name to a scalar: the mean loss of one task on all of its data."""

RATES = (1e-3, 5e-4, 2.5e-4, 1.25e-4)


@dataclass(frozen=True)
class Residual:
    """What is left of ``sum_t tau_t`` at one number of steps and one learning rate; Euclidean norms."""

    steps: int
    rate: float
    vector: float
    """Of the sum of task vectors itself."""
    first: float
    """Less the gradients along the multi-task path."""
    second: float
    """Less the Hessian term too."""


@checked
def gradient_equivalence(
    losses: Sequence[Loss],
    theta0: Params,
    steps: Sequence[int],
    rates: Sequence[float] = RATES,
    alpha: float = 1.0,
    watch: Watch = unwatched,
) -> list[Residual]:
    """Compare the sum of task vectors of full-batch gradient descent with multi-task gradient descent.

        sum_t tau_t^(k) = - eta sum_t sum_{j<k} grad L_t(theta_MT^(j))
                          - eta^2/2 k (k - 1) sum_t H_t r_t + O(eta^3)
        r_t = alpha sum_{s != t} g_s + (alpha - 1) g_t

    tau_t^(k) comes from k steps on task t alone with rate eta, theta_MT^(j) from j steps on the sum of all
    losses with rate alpha eta; g_t and H_t are gradient and Hessian of L_t at theta_0. At k = 1, or for
    losses linear in theta, the first line is exact; beyond, what is left falls as eta^2, and as eta^3 after
    the second line.

    Args:
        losses: one a task, twice differentiable, in float64 (the residuals are differences of close numbers).
        theta0: leaves to start from; not modified.
        steps: numbers of steps k, each from 1.
        rates: learning rates eta.
        alpha: factor of the sum when it is added to the model.

    Returns: one residual for every number of steps and every rate.
    Raises: InputError for no loss, no step, a rate that is not positive or an alpha that is not finite;
        TaskvecError when a loss is no longer finite.
    Cost: (2 T max(k) + 2 T) gradients a rate, and T Hessian-vector products in all; no Hessian is formed.
        Memory of about max(6, 3 + number of steps) times the parameters.
    Source: Zhou et al. 2024 (arXiv:2411.03055), with the second-order term written out.
    """
    finite = all(0 < rate < math.inf for rate in rates) and math.isfinite(alpha)
    if not (losses and steps and min(steps) >= 1 and rates and finite):
        raise InputError(
            f"gradient equivalence: {len(losses)} losses, steps {list(steps)}, rates {list(rates)}, alpha "
            f"{alpha:g}; expected one loss or more, steps from 1, positive rates and a finite alpha"
        )
    start = {name: value.detach() for name, value in theta0.items()}
    hessian = _hessian_term(losses, start, alpha) if max(steps) > 1 else None
    residuals = []
    for done, rate in enumerate(rates, start=1):
        residuals += [
            _residual(k, rate, vector, left, hessian)
            for k, vector, left in _paths(losses, start, sorted(set(steps)), rate, alpha)
        ]
        watch("learning rates", done, len(rates))
    return residuals


def _paths(
    losses: Sequence[Loss], start: Params, steps: Sequence[int], rate: float, alpha: float
) -> Iterator[tuple[int, float, Params]]:
    """For every k of ``steps``: k, the norm of the sum of vectors, what the multi-task path leaves of it.

    Displacements are summed, not parameters subtracted: that would round at the size of the parameters.
    """
    sums = {k: _zeros(start) for k in steps}
    for loss in losses:
        tau = _zeros(start)
        for step in range(1, steps[-1] + 1):
            _add(tau, -rate, _gradient(loss, _plus(start, 1.0, tau))[1])
            if step in sums:
                _add(sums[step], 1.0, tau)
    lengths = {k: _norm(total) for k, total in sums.items()}
    path = _zeros(start)
    for step in range(1, steps[-1] + 1):
        theta = _plus(start, alpha, path)
        for loss in losses:
            _add(path, -rate, _gradient(loss, theta)[1])
        if step in sums:
            yield step, lengths[step], _plus(sums[step], -1.0, path)


def _residual(k: int, rate: float, vector: float, left: Params, hessian: Params | None) -> Residual:
    first = _norm(left)
    if k == 1 or hessian is None:
        return Residual(k, rate, vector, first, first)
    return Residual(k, rate, vector, first, _norm(_plus(left, rate**2 / 2 * k * (k - 1), hessian)))


def _hessian_term(losses: Sequence[Loss], start: Params, alpha: float) -> dict[str, Tensor]:
    """sum_t H_t r_t at theta_0, by differentiating g_t . r_t once more."""
    slopes = [_gradient(loss, start)[1] for loss in losses]
    every = _zeros(start)
    for slope in slopes:
        _add(every, alpha, slope)
    total = _zeros(start)
    for loss, slope in zip(losses, slopes, strict=True):
        leaves, gradient = _gradient(loss, start, differentiable=True)
        r = _plus(every, -1.0, slope)
        directional = sum((gradient[name] * r[name]).sum() for name in start)
        if isinstance(directional, Tensor) and directional.requires_grad:
            curved = torch.autograd.grad(directional, list(leaves.values()), materialize_grads=True)
            _add(total, 1.0, dict(zip(leaves, curved, strict=True)))
    return total


def _gradient(loss: Loss, at: Params, *, differentiable: bool = False) -> tuple[Params, dict[str, Tensor]]:
    """Leaves and gradients; ``differentiable`` keeps the graph for another derivative."""
    leaves = {name: value.detach().requires_grad_() for name, value in at.items()}
    value = loss(leaves)
    if not math.isfinite(value.item()):
        raise TaskvecError("gradient equivalence: a loss is no longer finite; lower the learning rates")
    slopes = torch.autograd.grad(
        value, list(leaves.values()), create_graph=differentiable, materialize_grads=True
    )
    return leaves, dict(zip(leaves, slopes, strict=True))


def _zeros(like: Params) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for name, value in like.items()}


def _add(total: Params, factor: float, other: Params) -> None:
    """total += factor * other, in place."""
    torch._foreach_add_(list(total.values()), [other[name] for name in total], alpha=factor)


def _plus(vector: Params, factor: float, other: Params) -> dict[str, Tensor]:
    total = torch._foreach_add(list(vector.values()), [other[name] for name in vector], alpha=factor)
    return dict(zip(vector, total, strict=True))


def _norm(vector: Params) -> float:
    return math.hypot(*(float(value.norm()) for value in vector.values()))


def slope(rates: Sequence[float], residuals: Sequence[float]) -> float | None:
    """Least-squares slope of log residual over log rate: the order of the first term left out.

    None where fewer than two points are left, or a residual is zero.
    """
    if len(rates) < 2 or min(residuals) <= 0:
        return None
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (rates, residuals))
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
