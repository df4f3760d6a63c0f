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
        given: the dtype in which the matrix was given, if not its own.
    """
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    largest = float(s[0] if like is None else torch.linalg.vector_norm(like))
    kept = int((s > largest * max(matrix.shape) * torch.finfo(given or s.dtype).eps).sum())
    return u[:, :kept], s[:kept], v[:kept]


def joined(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Components of several matrices as if they were of one, left and right vectors made orthonormal.

    The nearest orthonormal vectors to U = P D Q are the polar factor P Q.
    """
    u, s, v = (torch.cat([part[n] for part in parts], dim=axis) for n, axis in ((0, 1), (1, 0), (2, 0)))
    return (u, s, v) if not len(s) else (_polar(u), s, _polar(v))


def _polar(matrix: Tensor) -> Tensor:
    p, _, q = svd(matrix)
    return p @ q
