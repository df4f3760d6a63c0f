"""The kernel's products with vectors, without the kernel."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.substitution import substituted
from taskvec.tangent.forward import jvp
from taskvec.tangent.ntk.samples import Inputs, Samples, Selection, selected

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


@checked
def ntk_product(
    model: nn.Module,
    x1: Inputs,
    x2: Inputs | None,
    v: Tensor,
    *,
    params: Selection = "all",
    batch: int = 64,
) -> Tensor:
    """The kernel times a vector, matrix-free.

        (K v)[i, c] = sum_jd K[i, c, j, d] v[j, d] = (J(x1) J(x2)^T v)[i, c]

    Args:
        model, x1, x2, params: as for :func:`ntk`; without ``x2`` the samples of ``x1`` take its place.
        v: (N2, C).
        batch: samples a pass.

    Returns: (N1, C).
    Raises: InputError for a ``v`` of another shape, outputs other than (N, C), nothing selected; NoTangent
        for an operation without a forward-mode derivative.
    Cost: a forward and a backward pass over ``x2``, a forward-mode pass over ``x1``; memory of two copies of
        the parameters.
    """
    first = Samples.of(x1, "x1")
    second = first if x2 is None else Samples.of(x2, "x2")
    parameters = selected(model, params)
    step = _pull_back(model, parameters, second, v, batch)
    return _push_forward(model, parameters, first, step, batch)


@checked
def ntk_operator(
    model: nn.Module, x: Inputs, *, params: Selection = "all", ridge: float = 0.0, batch: int = 64
) -> "LinearOperator":
    """K(x, x) + ridge as a symmetric SciPy operator on vectors (N C,), samples first: for CG and eigenpairs.

    >>> from scipy.sparse.linalg import eigsh
    >>> model = nn.Linear(3, 2).double()
    >>> operator = ntk_operator(model, torch.eye(3, dtype=torch.float64))
    >>> eigsh(operator, k=1)[0].round(6)  # x_i . x_j + 1
    array([4.])
    """
    samples = Samples.of(x, "x")
    with torch.no_grad():
        out = samples[:1].outputs(model)
    shape = (len(samples), out.shape[1])

    def times(vector: Any) -> Any:
        v = torch.from_numpy(np.ascontiguousarray(vector)).to(out).view(shape)
        product = ntk_product(model, x, None, v, params=params, batch=batch)
        return product.flatten().double().cpu().numpy() + ridge * vector.reshape(-1)

    side = shape[0] * shape[1]
    from scipy.sparse.linalg import LinearOperator  # here, as it takes long to import

    return LinearOperator((side, side), matvec=times, rmatvec=times, dtype=np.float64)


def _pull_back(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], samples: Samples, v: Tensor, batch: int
) -> dict[str, Tensor]:
    """J^T v, by parameter."""
    leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    for start in range(0, len(samples), batch):
        piece = samples[start : start + batch]
        with torch.enable_grad(), substituted(model, leaves):
            out = piece.outputs(model)
        if v.shape != (len(samples), out.shape[1]):
            raise InputError(
                f"ntk_product: v is {tuple(v.shape)}, expected {(len(samples), out.shape[1])} as the outputs"
            )
        if out.requires_grad:
            some = v[start : start + batch].to(out)
            slopes = torch.autograd.grad(out, list(leaves.values()), some, materialize_grads=True)
            for name, slope in zip(leaves, slopes, strict=True):
                total[name] += slope
    return total


@torch.no_grad()
def _push_forward(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    samples: Samples,
    step: Mapping[str, Tensor],
    batch: int,
) -> Tensor:
    """J times a displacement."""

    def outputs(piece: Samples, values: Mapping[str, Tensor]) -> Tensor:
        with substituted(model, values):
            return piece.outputs(model)

    pieces = (samples[start : start + batch] for start in range(0, len(samples), batch))
    return torch.cat([jvp(partial(outputs, piece), parameters, step)[1] for piece in pieces])
