"""KnOTS: merge in the space that the tasks' matrices span together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taskvec.rules.matrix import check_pattern, is_matrix
from taskvec.rules.rule import ANYWHERE, Place, Rule

_WIDTHS = (64, 256)
"""Ranks that are tried before a whole decomposition: those of a few adapters together."""

_ROUNDINGS = 16
"""How far from the sum of its products, in units of rounding, a product of factors may be computed."""


def knots(
    deltas: Tensor,
    *,
    inner: str = "ties",
    options: Mapping[str, Any] | None = None,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
    _rounded: torch.dtype | None = None,
) -> Tensor:
    """Bring all tasks' matrices to common directions and merge what each task makes of these, by any rule.

        [Delta_1 .. Delta_T] = U diag(S) [V_1 .. V_T]
        merged = U diag(S) inner(V_1 .. V_T)

    Args:
        deltas: (task, m, n). The inner rule alone merges tensors of other than two axes.
        inner: the rule, or chain of rules, that merges the V_t, a matrix by itself; one that needs the base,
            statistics or a look at the whole model is refused.
        options: the parameters of the inner rule.
        exclude: regular expression; matrices whose name it matches are merged by the inner rule alone.

    With the mean or the sum as inner rule it is these. Directions that are rounding take no part.
    Cost: one decomposition a matrix, in float64; little where the matrices have low rank, as LoRA's do.
    Source: Stoica et al. 2025, arXiv:2410.19735. The authors drop singular values by a fixed threshold.
    """
    rule = _rule(inner)
    values = {**rule.settings(options or {}), **rule.accepted_parameters({"_place": _place})}
    if not is_matrix(deltas, exclude, _place):
        return rule(deltas, **values)
    left, parts = _aligned(deltas, _rounded or deltas.dtype)
    if not left.shape[1]:
        return torch.zeros_like(deltas[0])
    return (left @ rule(parts, **values)).to(deltas.dtype)


def check(
    tasks: int | None, *, inner: str, options: Mapping[str, Any] | None, exclude: str | None, **_: object
) -> str | None:
    """What is wrong with the inner rule and its parameters."""
    rule = _rule(inner)
    for keyword, words in (("_base", "the weights of the base"), ("_stats", "statistics")):
        if keyword in rule.keywords:
            return f"inner is {inner!r}, which needs {words}; choose another"
    if rule.looks_at_all(rule.settings(options or {}, tasks), tasks):
        return f"inner is {inner!r}, which with these options looks at the whole model; choose another"
    return check_pattern(tasks, exclude=exclude)


def _rule(inner: str) -> Rule:
    from taskvec.rules import RULES  # where this rule itself is listed

    return RULES[inner]


def _aligned(deltas: Tensor, given: torch.dtype) -> tuple[Tensor, Tensor]:
    """U diag(S), (m, k), and the V_t, (task, k, n), in float64.

    A direction of rounding would count as much as any other in V, so the matrices' own precision decides.
    """
    joined = torch.cat(tuple(deltas.double()), dim=1)
    size = float(torch.linalg.vector_norm(joined))
    rounding = _ROUNDINGS * torch.finfo(given).eps * size
    basis = _basis(joined, rounding)
    u, s, v = torch.linalg.svd(joined if basis is None else basis.T @ joined, full_matrices=False)
    kept = int((s > max(rounding, max(joined.shape) * torch.finfo(s.dtype).eps * size)).sum())
    left = (u if basis is None else basis @ u)[:, :kept] * s[:kept]
    tasks, _, columns = deltas.shape
    return left, v[:kept].reshape(kept, tasks, columns).transpose(0, 1).contiguous()


def _basis(matrix: Tensor, rounding: float) -> Tensor | None:
    """A few orthonormal columns that span those of ``matrix``, if it has so low a rank."""
    for width in _WIDTHS:
        if 4 * width > min(matrix.shape):
            return None
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
        basis: Tensor = torch.linalg.qr(matrix @ start).Q
        if float(torch.linalg.vector_norm(matrix - basis @ (basis.T @ matrix))) <= rounding:
            return basis
    return None


KNOTS = Rule("knots", knots, "matrix", check=check, copies=(16, 16))
