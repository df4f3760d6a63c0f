"""Quadratic forms of a displacement, block by block: the value and its gradient in one go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from taskvec.statistics.blocks import Block


class Form(Protocol):
    """A symmetric map of matrices (rows, columns) without negative directions."""

    def times(self, matrix: Tensor) -> Tensor:
        """What it makes of one."""


@dataclass(frozen=True)
class Kronecker:
    """``B W A``.

    Args:
        inner: A (columns, columns). outer: B (rows, rows).
    """

    inner: Tensor
    outer: Tensor

    def times(self, matrix: Tensor) -> Tensor:
        """Three matrices multiplied."""
        return self.outer @ matrix @ self.inner


@dataclass(frozen=True)
class Turned:
    """``U_B (D * U_B^T W U_A) U_A^T``.

    Args:
        inner, outer: eigenvectors U_A and U_B, as columns. values: D (rows, columns).
    """

    inner: Tensor
    outer: Tensor
    values: Tensor

    def times(self, matrix: Tensor) -> Tensor:
        """There and back."""
        return self.outer @ (self.values * (self.outer.mT @ matrix @ self.inner)) @ self.inner.mT


@dataclass(frozen=True)
class Scaled:
    """``D * W``, in any shape."""

    values: Tensor

    def times(self, matrix: Tensor) -> Tensor:
        """Entry by entry."""
        return self.values * matrix


@dataclass(frozen=True)
class Energy:
    """``sum over forms of <W, form(W)>`` of the displacement W of a block, or of one parameter.

    Args:
        block: the parameters and their matrix; those of them that stay where they are count as zero.
    """

    block: Block | str
    forms: Sequence[Form]

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return [self.block] if isinstance(self.block, str) else self.block.names

    def slopes(self, tau: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The value, and half its gradient by parameter."""
        matrix = self._matrix(tau)
        products = [form.times(matrix) for form in self.forms]
        product = products[0] if len(products) == 1 else torch.stack(products).sum(0)
        value = torch.dot(matrix.flatten(), product.flatten())
        if isinstance(self.block, str):
            return value, {self.block: product}
        return value, dict(zip(self.names, self.block.parted(product), strict=True))

    def _matrix(self, tau: Mapping[str, Tensor]) -> Tensor:
        if isinstance(self.block, str):
            return tau[self.block]
        like = next(tau[name] for name in self.names if name in tau)
        shapes = [self.block.shape, torch.Size([self.block.sides[0]])]
        parts = [
            tau.get(name, like.new_zeros(())).expand(shape)
            for name, shape in zip(self.names, shapes, strict=False)
        ]
        return self.block.joined(parts[0], parts[1] if len(parts) > 1 else None)


def energy(terms: Sequence[Energy], tau: Mapping[str, Tensor]) -> Tensor:
    """The sum of all, differentiable in tau once; each form is applied once for value and gradient."""
    names = [name for term in terms for name in term.names if name in tau]
    value: Tensor = _Energies.apply(terms, names, *(tau[name] for name in names))  # type: ignore[no-untyped-call]
    return value


class _Energies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, terms: Sequence[Energy], names: Sequence[str], *taus: Tensor) -> Tensor:
        tau = dict(zip(names, taus, strict=True))
        values: list[Tensor] = []
        slopes: dict[str, Tensor] = {}
        for term in terms:
            value, of_term = term.slopes(tau)
            values.append(value)
            slopes |= of_term
        ctx.save_for_backward(*(slopes[name] for name in names))
        return torch.stack(values).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(2 * slope * half for half in ctx.saved_tensors)
