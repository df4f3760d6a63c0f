"""Iso-C and Iso-CTS: every direction of the merged update with the same strength."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.rules.matrix import check_pattern, in_rows, is_matrix, joined, svd
from taskvec.rules.rule import ANYWHERE, Place, Rule


def iso_c(
    deltas: Tensor,
    *,
    rank: Literal["numerical", "full"] = "numerical",
    exclude: str | None = None,
    _place: Place = ANYWHERE,
    _rounded: torch.dtype | None = None,
) -> Tensor:
    """Keep the directions of the summed matrices and give each the mean strength.

        sum_t Delta_t = U diag(s) V      ->      merged = mean(s) U V

    Args:
        deltas: (task, m, n). Tensors of other than two axes are averaged.
        rank: average over the singular values that are not rounding (``numerical``), which is the only
            well-defined choice for a matrix without full rank, or over all min(m, n) (``full``, as in the
            authors' code). The same for matrices of full rank.
        exclude: regular expression; matrices whose name it matches are averaged too.

    One task does not stay as it is. Scales of 1 to 1.5 are usual.
    Source: Marczak et al. 2025, arXiv:2502.04959.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    total = deltas.sum(0)
    numerical = rank == "numerical"
    u, s, v = svd(total, given=_rounded) if numerical else torch.linalg.svd(total, full_matrices=False)
    return s.mean() * (u @ v) if len(s) else torch.zeros_like(total)


def iso_cts(
    deltas: Tensor,
    *,
    common: Annotated[float, Field(ge=0, le=1)] = 0.8,
    exclude: str | None = None,
    _place: Place = ANYWHERE,
    _rounded: torch.dtype | None = None,
) -> Tensor:
    """Iso-C with some of the directions reserved for what is special to each task.

        r = min(m, n); each task gets n_t = round((r - int(common r)) / T) directions, the rest are common
        common:  the leading components of sum_t Delta_t, with left vectors U_c
        task t:  the leading components of Delta_t - U_c U_c^T Delta_t
        merged = mean(all these singular values) polar([U_1 .. U_T U_c]) polar([V_1; ..; V_T; V_c])

    Args:
        deltas: (task, m, n). Tensors of other than two axes are averaged.
        common: fraction of the directions that come from the sum; 1 is ``iso_c``.
        exclude: regular expression; matrices whose name it matches are averaged too.

    Components of singular value zero take no part.
    Cost: T + 3 decompositions a matrix.
    Source: Marczak et al. 2025, arXiv:2502.04959.
    """
    if not is_matrix(deltas, exclude, _place):
        return deltas.mean(0)
    directions = min(deltas.shape[1:])
    special = min(round((directions - int(common * directions)) / len(deltas)), directions // len(deltas))
    shared = directions - special * len(deltas)
    whole = svd(deltas.sum(0), given=_rounded)
    u, s, v = (part[..., :shared] if n < 2 else part[:shared] for n, part in enumerate(whole))
    rests = (svd(delta - u @ (u.T @ delta), like=delta, given=_rounded) for delta in deltas)
    leading = [(left[:, :special], size[:special], right[:special]) for left, size, right in rests]
    u, s, v = joined([*leading, (u, s, v)], _rounded)
    return s.mean() * (u @ v) if len(s) else torch.zeros_like(deltas[0])


ISO_C = Rule("iso_c", iso_c, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15))
ISO_CTS = Rule("iso_cts", iso_cts, "matrix", in_rows=in_rows, check=check_pattern, copies=(5, 15))
