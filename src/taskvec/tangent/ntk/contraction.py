"""Inner products of per-sample gradients: small slices, matrix products, and the symmetric half only."""

from typing import Literal

import torch
from torch import Tensor

from taskvec.tangent.ntk.terms import Outer, Scatter, Term, matrix_shape

Mode = Literal["full", "class", "trace"]
"""All pairs of classes; equal classes; the sum over equal classes."""

Chunk = tuple[slice, list[Term]]
"""Places of samples among their block, and the terms of one parameter for them."""

SMALLEST = 48
"""Rows below which a symmetric product is not split further."""


class Block:
    """A rectangle of the kernel: samples of one block against samples of another, or of the same.

    Args:
        kernel: (N1 C, N2 C) in mode full, (C, N1, N2) in mode class, (N1, N2) in mode trace.
        rows, columns: the samples.
        symmetric: the two are the same; only the upper half is filled.
        floats: numbers that a slice may hold.
    """

    def __init__(
        self,
        kernel: Tensor,
        rows: slice,
        columns: slice,
        classes: int,
        mode: Mode,
        *,
        symmetric: bool,
        floats: int,
    ) -> None:
        self.classes, self.mode, self.symmetric, self.floats = classes, mode, symmetric, floats
        self.n1, self.n2 = rows.stop - rows.start, columns.stop - columns.start
        self._workspace = kernel.new_empty(0)
        factor = classes if mode == "full" else 1
        self.view = kernel[
            ..., rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor
        ]

    def add(self, shape: torch.Size, first: list[Chunk], second: list[Chunk] | None) -> None:
        """Add the contribution of one parameter of ``shape``."""
        other = first if second is None else second
        if self._pairwise(first, other):
            for at, [left] in first:
                for to, [right] in other:
                    if not self.symmetric or to.stop > at.start:
                        self._add_pairs(at, left, to, right)  # type: ignore[arg-type]
            return
        if all(isinstance(term, Scatter) for side in (first, other) for _, terms in side for term in terms):
            self._add_lookups(first, other)
        elif first and other:
            count, columns = matrix_shape(shape)
            samples = self.n1 + (0 if second is None else self.n2)
            height = min(count, max(1, self.floats // (samples * self.classes * columns)))
            for start in range(0, count, height):
                rows = slice(start, min(start + height, count))
                space = self._space(samples * self.classes * height * columns)
                here = self._written(first, self.n1, rows, columns, space)
                rest = space[here.numel() :]
                there = None if second is None else self._written(second, self.n2, rows, columns, rest)
                self._multiply(here, there)

    def _space(self, numbers: int) -> Tensor:
        """Memory for a slice, the same for all slices: new pages cost more than the work done in them."""
        if len(self._workspace) < numbers:
            self._workspace = self.view.new_empty(0)  # the old one goes before the new one comes
            self._workspace = self.view.new_empty(numbers)
        return self._workspace

    def _written(self, chunks: list[Chunk], n: int, rows: slice, columns: int, space: Tensor) -> Tensor:
        count = rows.stop - rows.start
        into = space[: n * self.classes * count * columns].view(n, self.classes, count, columns)
        if sum(at.stop - at.start for at, _ in chunks) < n:
            into.zero_()  # some samples do not use the parameter
        for at, terms in chunks:
            for place, term in enumerate(terms):
                term.write(into[at], rows, fresh=place == 0)
        return into.view(n, self.classes, -1)

    def _multiply(self, left: Tensor, right: Tensor | None) -> None:
        n1, classes, width = left.shape
        if self.mode == "class":
            for c in range(classes):
                _gemm(self.view[c], left[:, c], None if right is None else right[:, c])
        else:
            size = (-1, width) if self.mode == "full" else (n1, -1)
            other = (
                None
                if right is None
                else right.reshape(
                    -1 if self.mode == "full" else len(right),
                    width if self.mode == "full" else classes * width,
                )
            )
            _gemm(self.view, left.reshape(size), other)

    def _add_lookups(self, first: list[Chunk], second: list[Chunk]) -> None:
        """A table's gradients have few rows in common: those alone are compared, row by row."""
        if not first or not second:
            return
        left = _read(first)
        right = left if second is first else _read(second)
        for row in left.keys() & right.keys():
            (i, g), (j, h) = left[row], right[row]
            if self.mode == "full":
                places = torch.arange(self.classes, device=g.device)
                at = (i[:, None] * self.classes + places).flatten()
                to = (j[:, None] * self.classes + places).flatten()
                self._put(self.view, at, to, g.flatten(0, 1) @ h.flatten(0, 1).T)
            elif self.mode == "trace":
                self._put(self.view, i, j, g.flatten(1) @ h.flatten(1).T)
            else:
                for c in range(self.classes):
                    self._put(self.view[c], i, j, g[:, c] @ h[:, c].T)

    def _put(self, kernel: Tensor, at: Tensor, to: Tensor, values: Tensor) -> None:
        kernel.index_put_((at[:, None], to[None]), values, accumulate=True)

    def _pairwise(self, first: list[Chunk], second: list[Chunk]) -> bool:
        """Whether comparing tokens costs less than writing out the gradients of a matrix product.

        S^2 (in / m + out) against in * out multiplications a pair of outputs, with m outputs of a pair of
        samples that share the comparison of their inputs; a token comparison is also written and read.
        """
        for _, terms in (*first, *second):
            if len(terms) != 1 or not isinstance(terms[0], Outer):
                return False
        if not first or not second:
            return False
        term = first[0][1][0]
        assert isinstance(term, Outer)
        fan_in, tokens, fan_out = term.tokens().shape[2], *term.slopes[0].shape[1:]
        shared = self.classes**2 if self.mode == "full" else self.classes
        return bool(tokens**2 * (fan_in / shared + fan_out + 16) < fan_in * fan_out)

    def _add_pairs(self, at: slice, left: Outer, to: slice, right: Outer) -> None:
        """sum_st (x_is . x'_jt) (g_ics . g'_jdt), a few samples i at a time."""
        x, y = left.tokens(), right.tokens()
        classes = self.classes
        pairs = classes * classes if self.mode == "full" else classes
        step = max(1, self.floats // (len(y) * x.shape[1] * y.shape[1] * (pairs + 1)))
        for start in range(0, len(x), step):
            some = slice(start, min(start + step, len(x)))
            here = slice(at.start + some.start, at.start + some.stop)
            skip = max(0, here.start - to.start) if self.symmetric else 0
            if skip >= len(y):
                continue
            there = slice(to.start + skip, to.stop)
            inputs = torch.einsum("isk,jtk->isjt", x[some], y[skip:])
            g, h = left.slope()[some], right.slope()[skip:]
            if self.mode == "full":
                slopes = torch.einsum("icso,jdto->icsjdt", g, h)
                found = torch.einsum("icsjdt,isjt->icjd", slopes, inputs).flatten(2).flatten(0, 1)
                rows = slice(here.start * classes, here.stop * classes)
                self.view[rows, there.start * classes : there.stop * classes] += found
            else:
                slopes = torch.einsum("icso,jcto->cisjt", g, h)
                found = torch.einsum("cisjt,isjt->cij", slopes, inputs)
                self.view[..., here, there] += found if self.mode == "class" else found.sum(0)


def _read(chunks: list[Chunk]) -> dict[int, tuple[Tensor, Tensor]]:
    """By row of a table, the samples that read it, and their slopes (R, C, columns)."""
    found = [
        (samples + at.start, rows, slopes)
        for at, terms in chunks
        for term in terms
        if isinstance(term, Scatter)
        for samples, rows, slopes in [term.summed()]
    ]
    samples, rows, slopes = (torch.cat(column) for column in zip(*found, strict=True))
    order = rows.argsort(stable=True)
    names, counts = torch.unique_consecutive(rows[order], return_counts=True)
    parts = torch.split(order, counts.tolist())
    return {row: (samples[part], slopes[part]) for row, part in zip(names.tolist(), parts, strict=True)}


def _gemm(into: Tensor, left: Tensor, right: Tensor | None) -> None:
    """into += left right^T; without ``right`` the upper half of left left^T, by halves of halves."""
    if right is not None:
        into.addmm_(left, right.T)
    elif len(left) <= SMALLEST:
        into.addmm_(left, left.T)
    else:
        half = len(left) // 2
        into[:half, half:].addmm_(left[:half], left[half:].T)
        _gemm(into[:half, :half], left[:half], None)
        _gemm(into[half:, half:], left[half:], None)


def mirror(kernel: Tensor) -> None:
    """Copy the upper half of the last two dimensions to the lower one, in place."""
    n = kernel.shape[-1]
    for start in range(0, n, 512):
        stop = min(start + 512, n)
        kernel[..., start:stop, :start] = kernel[..., :start, start:stop].mT
        square = kernel[..., start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).mT)
