"""Per-sample gradients of one parameter, kept in the form that costs least and written out in slices.

Every class here holds what one use of a parameter by a chunk of n samples contributes to its Jacobian

    J[i, c, ...] = d f_c(x_i) / d parameter,

with the parameter seen as a matrix. ``write`` puts some of its rows into a buffer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Term(Protocol):
    """One use of a parameter by n samples."""

    def write(self, into: Tensor, rows: slice, fresh: bool) -> None:
        """Put rows of the Jacobian into ``into``, (n, C, rows, columns); add them if not ``fresh``."""

    def tensors(self) -> Sequence[Tensor]:
        """What is held in memory."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A Jacobian as it is, (n, C, rows, columns)."""

    jacobian: Tensor

    @classmethod
    def of(cls, classes: Sequence[Tensor]) -> "Dense":
        """From the gradients of every class, (n, *shape) each."""
        rows, columns = matrix_shape(classes[0].shape[1:])
        return cls(torch.stack(list(classes), 1).view(len(classes[0]), len(classes), rows, columns))

    def write(self, into: Tensor, rows: slice, fresh: bool) -> None:
        """Copy or add some rows."""
        if fresh:
            into.copy_(self.jacobian[:, :, rows])
        else:
            into += self.jacobian[:, :, rows]

    def tensors(self) -> Sequence[Tensor]:
        """The Jacobian."""
        return [self.jacobian]


@dataclass(frozen=True, eq=False)
class Outer:
    """Of a matrix product of S tokens a sample: sum_s slope[c][i, s, out] x[i, s, in].

    Args:
        x: (n, S, in), or what unfolds to it.
        slopes: the gradient at the product for every class, (n, S, out) each.
        flipped: the weight is stored (in, out), not (out, in).
        unfold: makes tokens of ``x`` when they are needed; a convolution's tokens are its patches.
    """

    x: Tensor
    slopes: Sequence[Tensor]
    flipped: bool = False
    unfold: Callable[[Tensor], Tensor] | None = None

    def tokens(self) -> Tensor:
        """(n, S, in)."""
        return self.x if self.unfold is None else self.unfold(self.x)

    def trimmed(self) -> "Outer":
        """Without the tokens that no output depends on: all but the pooled one in many a last block."""
        if self.unfold or not (self.slopes[0][0] == 0).all(-1).any():
            return self
        alive = torch.stack([(slope != 0).any(-1).any(0) for slope in self.slopes]).any(0)
        return Outer(self.x[:, alive], [slope[:, alive] for slope in self.slopes], self.flipped)

    def write(self, into: Tensor, rows: slice, fresh: bool) -> None:
        """Multiply the rows that are asked for."""
        n, classes, count, columns = into.shape
        x, beta = self.tokens(), 0 if fresh else 1
        if self.flipped:
            left = x[..., rows].transpose(1, 2).unsqueeze(1).expand(n, classes, count, -1)
            into.view(n * classes, count, columns).baddbmm_(
                left.reshape(n * classes, count, -1), self.slope().flatten(0, 1), beta=beta
            )
        else:
            left = torch.stack([slope[..., rows] for slope in self.slopes], 2).flatten(2)
            into.view(n, classes * count, columns).baddbmm_(left.transpose(1, 2), x, beta=beta)

    def slope(self) -> Tensor:
        """(n, C, S, out)."""
        return torch.stack(list(self.slopes), 1)

    def tensors(self) -> Sequence[Tensor]:
        """Inputs and gradients of the product."""
        return [self.x, *self.slopes]


@dataclass(frozen=True, eq=False)
class Scatter:
    """Of a table that samples look up: the slopes of every place go to the row that was read there.

    Args:
        index: (n, S), rows read; -1 where no gradient flows.
        slope: (n, C, S, columns).
    """

    index: Tensor
    slope: Tensor

    def write(self, into: Tensor, rows: slice, fresh: bool) -> None:
        """Add the slopes of the places that read one of the rows."""
        if fresh:
            into.zero_()
        hit = (self.index >= rows.start) & (self.index < rows.stop)
        sample, token = hit.nonzero(as_tuple=True)
        classes = torch.arange(into.shape[1], device=into.device)
        into.index_put_(
            (sample[:, None], classes[None], (self.index[sample, token] - rows.start)[:, None]),
            self.slope[sample, :, token],
            accumulate=True,
        )

    def summed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples (R,), rows (R,) and slopes (R, C, columns) of all pairs of a sample and a row it read."""
        sample, token = (self.index >= 0).nonzero(as_tuple=True)
        most = int(self.index.max()) + 1
        pairs, place = torch.unique(sample * most + self.index[sample, token], return_inverse=True)
        slopes = self.slope.new_zeros(len(pairs), self.slope.shape[1], self.slope.shape[3])
        slopes.index_add_(0, place, self.slope[sample, :, token])
        return pairs // most, pairs % most, slopes

    def tensors(self) -> Sequence[Tensor]:
        """The slopes; the index is small."""
        return [self.slope]


def jacobian(terms: Sequence[Term], n: int, classes: int, shape: torch.Size) -> Tensor:
    """The whole Jacobian (n, C, *shape) of a parameter, the sum of its uses."""
    rows, columns = matrix_shape(shape)
    into = terms[0].tensors()[0].new_empty(n, classes, rows, columns)
    for place, term in enumerate(terms):
        term.write(into, slice(0, rows), fresh=place == 0)
    return into.view(n, classes, *shape)


def matrix_shape(shape: torch.Size) -> tuple[int, int]:
    """Rows and columns of a parameter: vectors and numbers are one row."""
    return (1, shape.numel()) if len(shape) < 2 else (shape[0], shape.numel() // max(shape[0], 1))
