"""DC-Merge: the tasks' matrices merged entry by entry in one basis that covers all of them."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix, joined, svd
from taskvec.rules.rule import ANYWHERE, Place, Rule
from taskvec.rules.ties import TIES

_RATIO = 5
"""Of the largest to the smallest singular value that are put on a line."""


def dc_merge(
    deltas: Tensor,
    *,
    entries: Annotated[float, Field(gt=0)] = 0.768,
    smooth: Literal["none", "average", "linear"] = "none",
    exclude: str | None = None,
    _place: Place = ANYWHERE,
    _rounded: torch.dtype | None = None,
) -> Tensor:
    """Merge the matrices by sign election in a basis made of the leading directions of all tasks.

        Delta_t = U_t S_t V_t, the top k = int(min(m, n) / T) components of each
        U, V    = polar([U_1 .. U_T]), polar([V_1; ..; V_T])
        M_t     = U^T Delta_t V^T, its largest entries
        merged  = U (ties mean of the M_t, where row and column are of one task) V

    Args:
        deltas: (task, m, n). Tensors of other than two axes, and matrices with less than one direction for
            each task, are averaged.
        entries: how many entries of M_t are kept for each of its rows: of (d, d), round(entries d).
        smooth: the singular values of each task first: as they are (``none``), their mean (``average``), or
            a line from five times the smallest down to it with the same sum (``linear``).
        exclude: regular expression; matrices whose name it matches are averaged too.

    One task keeps its largest ``entries`` d components. Components of singular value zero take no part.
    Copies of a vector do not count once. Computed in float64.
    Cost: T + 2 decompositions a matrix.
    Source: DC-Merge, CVPR 2026. The authors' code keeps a thousandth of the entries, which is 0.768 a row at
    768 directions and nothing at a few; the order of the steps and ``linear`` are our reading.
    """
    directions = min(deltas.shape[1:], default=0) // len(deltas)
    if not directions or not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    parts, smoothed = [], []
    for delta in deltas.double():
        u, s, v = svd(delta, given=_rounded or deltas.dtype)
        smoothed.append(delta if smooth == "none" else (u * _smoothed(s, smooth)) @ v)
        parts.append((u[:, :directions], s[:directions], v[:directions]))
    left, _, right = joined(parts, _rounded or deltas.dtype)
    if not left.shape[1]:
        return torch.zeros_like(deltas[0])
    inside = torch.stack([left.T @ matrix @ right.T for matrix in smoothed])
    chosen = TIES(inside, keep=min(1.0, max(1, round(entries * len(right))) / inside[0].numel()))
    owner = torch.cat([torch.full((len(s),), task) for task, (_, s, _) in enumerate(parts)])
    own = chosen * (owner[:, None] == owner)
    return (left @ own @ right).to(deltas.dtype)


def _smoothed(values: Tensor, kind: str) -> Tensor:
    """Singular values with the same sum, more alike."""
    if not len(values):
        return values
    line = torch.linspace(_RATIO if kind == "linear" else 1, 1, len(values), dtype=values.dtype)
    return line * (values.sum() / line.sum())


DC_MERGE = Rule("dc_merge", dc_merge, "matrix", in_rows=in_rows, check=check_pattern, copies=(12, 30))
