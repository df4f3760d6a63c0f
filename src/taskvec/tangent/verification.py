"""Do two routes to the same linearization agree?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from taskvec.tangent.forward import Params, differentiable

Route = Callable[..., Any]


@dataclass(frozen=True)
class Probe:
    """What a linearization gives at a random displacement, and pulls back from a random cotangent."""

    values: list[Tensor]
    slopes: list[Tensor]


def probe(run: Route, theta0: Params, names: Iterable[str], args: Any, kwargs: Any) -> Probe:
    """Value and gradient of a linearization on these inputs; every call draws the same displacement."""
    draw = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=draw).to(device=like.device, dtype=like.dtype)

    steps = {name: 0.01 * noise(theta0[name]) for name in names}
    device = next(iter(steps.values())).device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        leaves = {name: step.requires_grad_() for name, step in steps.items()}
        values = list(filter(differentiable, tree_leaves(run(leaves, *args, **kwargs))))
        return Probe(values, _pull_back(values, [noise(value) for value in values], list(leaves.values())))


def describe_disagreement(rules: Probe, exact: Probe) -> str:
    """Where two linearizations differ in a value or in a gradient; empty if nowhere.

    Equal means within ten times the square root of the dtype's epsilon, relative to the largest entry of
    all: far above rounding, far below a wrong derivative. Where ``exact`` is not finite (the math attention
    kernel at a query that sees nothing), finite is all that is asked of ``rules``.
    """
    if not are_close(rules.values, exact.values):
        return "its values differ from those of torch.func"
    if not are_close(rules.slopes, exact.slopes):
        return "its gradient differs from that of torch.func"
    return ""


def _pull_back(outs: list[Tensor], pulls: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    moved = [(out, pull) for out, pull in zip(outs, pulls, strict=True) if out.requires_grad]
    slopes = torch.autograd.grad(
        [out for out, _ in moved], leaves, [pull for _, pull in moved], allow_unused=True
    )
    return [torch.zeros_like(leaf) if s is None else s for leaf, s in zip(leaves, slopes, strict=True)]


def are_close(values: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether tensors are equal up to rounding, and at least finite where the expected ones are not."""
    if not all(bool(b.isfinite().all()) for b in expected):
        return all(bool(a.isfinite().all()) for a in values)
    largest = max((float(b.detach().abs().max()) for b in expected if b.numel()), default=0.0)
    tolerance = 10 * torch.finfo(expected[0].dtype).eps ** 0.5 * largest if expected else 0.0
    return len(values) == len(expected) and all(
        a.shape == b.shape and (a.numel() == 0 or float((a - b).detach().abs().max()) <= tolerance)
        for a, b in zip(values, expected, strict=True)
    )
