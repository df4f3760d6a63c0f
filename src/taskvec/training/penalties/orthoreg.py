"""OrthoReg: displacements of matrices with orthogonal columns."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.settings import OrthoReg


def bind(settings: OrthoReg, given: Given) -> Penalty:
    """The sum over matrices D of tau, (n, m) on its smaller side, of how far ``G = D D^T`` is from diagonal.

        paper: ||G - I||^2        code: ||G - I||        cosine: mean over i != j of G_ij^2 / (G_ii G_jj)

    For the squared norm the smaller side differs from the larger one by a constant. Tensors of more
    dimensions, such as filters, are matrices (out, rest); those of fewer are left out.

    Raises: InputError if nothing that is trained is a matrix.
    Source: the OrthoReg paper (CVPR 2026, arXiv:2604.17078) and its code, which does not square.
    """
    deviation = _FORMS[settings.form]
    if not any(value.dim() > 1 for value in given.moved.tau().values()):
        raise InputError("penalty orthoreg: no matrix among what is trained; select others, or leave it out")

    def penalty(_: int) -> Tensor:
        return torch.stack([deviation(matrix) for matrix in matrices(given.moved.tau().values())]).sum()

    return penalty


def matrices(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Those that are matrices, (n, m) with n <= m; rows are columns of square ones."""
    flat = [tensor.flatten(1) for tensor in tensors if tensor.dim() > 1]
    return [matrix if len(matrix) < matrix.shape[1] else matrix.mT for matrix in flat]


def _squared(matrix: Tensor) -> Tensor:
    return _apart(matrix).square().sum()


def _norm(matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(_apart(matrix))
    return norm


def _apart(matrix: Tensor) -> Tensor:
    gram = matrix @ matrix.mT
    return gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def _cosines(matrix: Tensor) -> Tensor:
    """Zero for a single row; rows of zero have no angle, and count as orthogonal."""
    norms = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    units = matrix / torch.where(norms > 0, norms, 1)
    count = len(units)
    return (units @ units.mT).fill_diagonal_(0).square().sum() / max(1, count * (count - 1))


_FORMS: dict[str, Callable[[Tensor], Tensor]] = {"paper": _squared, "code": _norm, "cosine": _cosines}
