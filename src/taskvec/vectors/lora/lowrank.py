"""Matrices of low rank: their product by rows, and the best one for a given matrix."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.later import torch

if TYPE_CHECKING:
    from torch import Tensor


# Always the same rows are multiplied together, whichever are asked for, so that blocks change no bit.
TILE = 128
"""Rows multiplied at a time, counted from the first."""

# A full decomposition takes cubic time, subspace iteration time in proportion to the entries.
_EXACT = 512
"""The shorter side up to which the singular vectors are computed exactly."""

_SPARE = 16
_SWEEPS = 4


def multiplied(left: "Tensor", right: "Tensor", rows: slice | None) -> "Tensor":
    """Some rows of ``left @ right``, (m, r) and (r, n)."""
    first, last, step = (rows or slice(None)).indices(len(left))
    if step != 1:
        return multiplied(left, right, None)[rows]
    product = torch.empty((max(0, last - first), right.shape[1]), dtype=left.dtype)
    for start in range(first // TILE * TILE, last, TILE):
        tile = left[start : start + TILE] @ right
        inner = slice(max(first, start), min(last, start + TILE))
        product[inner.start - first : inner.stop - first] = tile[inner.start - start : inner.stop - start]
    return product


def factoring_bytes(shape: tuple[int, ...], rank: int, dtype: "torch.dtype") -> int:
    """Bytes that ``leading`` takes beside the matrix, about, and telling what the factors miss of it."""
    m, n = shape
    if _is_exact(shape, rank):
        return torch.float64.itemsize * (3 * m * n + 8 * min(m, n) ** 2)
    return dtype.itemsize * (3 * m * n + 6 * (rank + _SPARE) * (m + n))


def _is_exact(shape: Sequence[int], rank: int) -> bool:
    return min(shape) <= max(_EXACT, 4 * (rank + _SPARE))


def leading(matrix: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
    """Two factors (m, rank) and (rank, n) of the nearest matrix of that rank, each with half of the strength.

    Up to 512 rows or columns, or where the rank is no small part of them, from the singular value
    decomposition, in float64; else by subspace iteration from a fixed start, in float32 for float32, which
    comes within a per cent of the least error or so. Where the matrix has a smaller rank, the rest is zero.
    """
    exact = _is_exact(matrix.shape, rank)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False) if exact else _iterated(matrix, rank)
    return _halves(u, s, v, rank, matrix.dtype)


def _halves(
    u: "Tensor", s: "Tensor", v: "Tensor", rank: int, dtype: "torch.dtype"
) -> "tuple[Tensor, Tensor]":
    """``u`` and ``v`` up to a rank, each times half of the strength; zeros where there are fewer."""
    strength, missing, pad = s[..., :rank].sqrt(), max(0, rank - s.shape[-1]), torch.nn.functional.pad
    left, right = u[..., :rank] * strength[..., None, :], strength[..., None] * v[..., :rank, :]
    return pad(left, (0, missing)).to(dtype), pad(right, (0, 0, 0, missing)).to(dtype)


def leading_of_product(left: "Tensor", right: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
    """As ``leading`` of each ``left @ right`` of a stack, which are never made: from what lies between
    orthonormal factors."""
    q, core, p = _between_orthonormal(left, right)
    u, s, v = torch.linalg.svd(core, full_matrices=False)
    return _halves(q @ u, s, v @ p.mT, rank, left.dtype)


def norm_of_product(left: "Tensor", right: "Tensor") -> float:
    """The Euclidean norm of ``left @ right``, of a stack all together, which are never made."""
    return float(torch.linalg.vector_norm(_between_orthonormal(left, right)[1]))


def _between_orthonormal(left: "Tensor", right: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """``left @ right = q core p.mT`` with orthonormal columns of q and p, in float64."""
    (q, r), (p, t) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double().mT)
    return q, r @ t.mT, p


def _iterated(matrix: "Tensor", rank: int) -> "tuple[Tensor, Tensor, Tensor]":
    """The leading singular vectors, by randomized subspace iteration (Halko et al. 2011, arXiv:0909.4061)."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], rank + _SPARE, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    for _ in range(_SWEEPS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    u, s, v = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u, s, v
