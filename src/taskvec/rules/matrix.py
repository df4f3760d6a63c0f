"""What the rules on singular vectors share."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from taskvec.errors import InputError, NonFinite
from taskvec.patterns import Pattern
from taskvec.reading import shown
from taskvec.rules.rule import Place


def is_matrix(deltas: Tensor, exclude: str | None, place: Place) -> bool:
    """Whether a stack (task, *shape) is one of matrices that are not excluded by name.

    Raises: NonFinite if it is, but has no singular vectors.
    """
    axes = deltas.dim() - 1 if place.axes is None else place.axes
    if axes != 2 or not deltas.numel() or _excluded(exclude, place.name):
        return False
    if not bool(deltas.isfinite().all()):
        raise NonFinite(
            f"{place.name!r} holds NaN or infinity in a task vector, so it has no singular vectors; "
            "mend that model, or leave the matrix out with exclude"
        )
    return True


def in_rows(name: str, shape: Sequence[int], *, exclude: str | None, **_: object) -> bool:
    """Whether rows can be had by themselves: those of anything but the matrices that the rule is for."""
    return len(shape) != 2 or 0 in shape or _excluded(exclude, name)


def check_pattern(tasks: int | None, *, exclude: str | None, **_: object) -> str | None:
    """What is wrong with ``exclude``."""
    try:
        Pattern(exclude or "", f"exclude is {shown(exclude)}")
    except InputError as error:
        return str(error)
    return None


# Asked for each block of each tensor: every name is tried once.
@lru_cache(1 << 16)
def _excluded(exclude: str | None, name: str) -> bool:
    return bool(exclude) and _pattern(exclude or "").search(name) is not None


@lru_cache(64)
def _pattern(exclude: str) -> Pattern:
    return Pattern(exclude, "exclude")


def svd(
    matrix: Tensor, like: Tensor | None = None, given: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), S (r,), V (r, n) with ``matrix = U diag(S) V``, without the components that are rounding.

    Singular vectors of the value zero are arbitrary, so a rule that used them would not be one.

    Args:
        like: the matrix whose size decides what is rounding, if ``matrix`` is what is left of it.
        given: the dtype in which the matrix was given, if not its own. What is not rounding in float32 is
            found several times as fast, and well, from a Gram matrix in float64.
    """
    by_gram = matrix.dtype == torch.float64 and given == torch.float32
    u, s, v = _by_gram(matrix) if by_gram else torch.linalg.svd(matrix, full_matrices=False)
    largest = float(s[0] if like is None else torch.linalg.vector_norm(like))
    kept = int((s > largest * max(matrix.shape) * torch.finfo(given or s.dtype).eps).sum())
    return u[:, :kept], s[:kept], v[:kept]


def basis(matrix: Tensor) -> Tensor:
    """The left singular vectors of a wide matrix, the right ones of a tall one, strongest first.

    Always orthonormal and as many as the shorter side; those of values below 1e-8 of the largest are any.
    """
    unit = matrix / (float(matrix.abs().amax()) or 1.0)  # whose squares are neither zero nor infinite
    m, n = matrix.shape
    found: Tensor = torch.linalg.eigh(unit @ unit.T if m <= n else unit.T @ unit).eigenvectors
    return found.flip(1)


def _by_gram(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V like those of ``torch.linalg.svd``; right where S is above 1e-6 of the largest."""
    if matrix.shape[0] > matrix.shape[1]:
        v, s, u = _by_gram(matrix.T)
        return u.T, s, v.T
    u = basis(matrix)
    rows = u.T @ matrix
    s = torch.linalg.vector_norm(rows, dim=1)
    return u, s, rows / s.clamp(min=torch.finfo(s.dtype).tiny)[:, None]


def joined(
    parts: Sequence[tuple[Tensor, Tensor, Tensor]], given: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Components of several matrices as if they were of one, left and right vectors made orthonormal.

    The nearest orthonormal vectors to U = P D Q are the polar factor P Q.
    """
    u, s, v = (torch.cat([part[n] for part in parts], dim=axis) for n, axis in ((0, 1), (1, 0), (2, 0)))
    return (u, s, v) if not len(s) else (_polar(u, given), s, _polar(v, given))


def _polar(matrix: Tensor, given: torch.dtype | None) -> Tensor:
    p, _, q = svd(matrix, given=given)
    return p @ q
