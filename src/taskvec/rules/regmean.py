"""RegMean: the linear layer that gives each task's inputs what the task's own layer gives them."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules.rule import ANYWHERE, Place, Rule
from taskvec.rules.statistics import CONSUMES, Statistics, given


def regmean(
    deltas: Tensor,
    *,
    off_diagonal: Annotated[float, Field(ge=0, le=1)] = 0.95,
    ridge: Annotated[float, Field(gt=0)] = 1e-6,
    _stats: Statistics | None = None,
    _place: Place = ANYWHERE,
) -> Tensor:
    """Merge linear layers by regression on their inputs; everything else is averaged.

        merged = (sum_t Delta_t G_t) (sum_t G_t)^-1,      G_t = X_t^T X_t / rows
               = argmin sum_t |X_t (merged - Delta_t)^T|^2 / rows_t

    Args:
        deltas: (task, *shape); matrices (task, out, in) that have statistics are regressed.
        off_diagonal: factor of the entries of G_t off its diagonal. 1 is the regression itself, 0 averages
            each input column by its mean square; the paper shrinks to 0.9, public code to 0.95.
        ridge: added to the diagonal of the sum of G_t after its columns were scaled to 1. Directions of which
            the inputs hold less than this are averaged.

    G_t (in, in) is that of the inputs X_t of the layer in model t, from ``taskvec stats``. The base cancels:
    the same holds for the weights theta_0 + Delta_t.
    Source: Jin et al. 2023, arXiv:2212.09849.
    """
    mean = deltas.mean(0)
    if deltas.dim() != 3:
        return mean
    grams = given("regmean", _stats, deltas, (deltas.shape[2], deltas.shape[2]), _place)
    if grams is None:
        return mean
    read = torch.zeros(grams.shape[1:], dtype=torch.float64)
    wanted = torch.zeros(deltas.shape[1:], dtype=torch.float64)
    for delta, measured in zip(deltas, grams, strict=True):
        gram = off_diagonal * measured.double()
        gram.diagonal().copy_(measured.diagonal())
        read += gram
        wanted += (delta - mean).double() @ gram
    # Seen from the mean, what no input reaches stays there.
    scale = torch.where(read.diagonal() > 0, read.diagonal().rsqrt(), 0.0)
    damped = scale[:, None] * read * scale + ridge * torch.eye(len(read), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed) or bool((read.diagonal() < 0).any()):
        raise InputError(
            f"rule 'regmean': {_place.name!r} has statistics whose sum with ridge {ridge:g} is not positive "
            "definite; take a larger ridge, or make them again"
        )
    moved = torch.cholesky_solve((wanted * scale).T, factor).T * scale
    return (mean.double() + moved).to(deltas.dtype)


REGMEAN = Rule("regmean", regmean, "matrix", consumes=CONSUMES, copies=(5, 20), square=True)
