"""Inner products of per-sample gradients: small slices, matrix products, and the symmetric half only."""

from typing import Literal

import torch
from torch import Tensor

from taskvec.tangent.ntk.terms import Outer, Scatter, Term, matrix_shape

Mode = Literal["full", "class", "trace"]
"""All pairs of classes; equal classes; the sum over equal classes."""

Chunk = tuple[slice, list[Term]]
"""Places of samples among their block, and the terms of one parameter for them."""

_SMALLEST = 48
"""Rows below which a symmetric product is not split further: smaller products cost more than they save."""


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
        self.outputs = factor = classes if mode == "full" else 1
        self.n1, self.n2 = rows.stop - rows.start, columns.stop - columns.start
        view = kernel[
            ..., rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor
        ]
        # What the inner products of each group of outputs are added to: of all, or of one class.
        self.targets = list(view) if mode == "class" else [view]
        self._workspace = kernel.new_empty(0)

    def add(self, shape: torch.Size, first: list[Chunk], second: list[Chunk] | None) -> None:
        """Add the contribution of one parameter of ``shape``."""
        other = first if second is None else second
        if not first or not other:
            return
        terms = [term for _, terms in (*first, *other) for term in terms]
        if all(isinstance(term, Scatter) for term in terms):
            self._add_lookups(first, other)
        elif self._compares_tokens(first, other):
            for at, [left] in first:
                for to, [right] in other:
                    if not self.symmetric or to.stop > at.start:
                        self._add_tokens(at, left, to, right)  # type: ignore[arg-type]
        else:
            self._add_slices(matrix_shape(shape), first, second)

    def _groups(self, values: Tensor) -> Tensor:
        """(n, C, ..., entries) to (groups, outputs of a group, ..., entries)."""
        if self.mode == "trace":  # the classes are entries
            return values.movedim(1, -2).flatten(-2)[None]
        return values.flatten(0, 1)[None] if self.mode == "full" else values.transpose(0, 1)

    def _add_slices(self, shape: tuple[int, int], first: list[Chunk], second: list[Chunk] | None) -> None:
        count, columns = shape
        samples = self.n1 + (0 if second is None else self.n2)
        height = min(count, max(1, self.floats // (samples * self.classes * columns)))
        for start in range(0, count, height):
            rows = slice(start, min(start + height, count))
            space = self._space(samples * self.classes * height * columns)
            here = self._write(first, self.n1, rows, columns, space)
            there = (
                here if second is None else self._write(second, self.n2, rows, columns, space[here.numel() :])
            )
            for into, left, right in zip(self.targets, self._groups(here), self._groups(there), strict=True):
                if second is None:
                    _add_symmetric(into, left)
                else:
                    into.addmm_(left, right.T)

    def _space(self, numbers: int) -> Tensor:
        """Memory for a slice, the same for all slices: new pages cost more than the work done in them."""
        if len(self._workspace) < numbers:
            self._workspace = self._workspace.new_empty(0)  # the old one goes before the new one comes
            self._workspace = self._workspace.new_empty(numbers)
        return self._workspace

    def _write(self, chunks: list[Chunk], n: int, rows: slice, columns: int, space: Tensor) -> Tensor:
        count = rows.stop - rows.start
        into = space[: n * self.classes * count * columns].view(n, self.classes, count, columns)
        if sum(at.stop - at.start for at, _ in chunks) < n:
            into.zero_()  # some samples do not use the parameter
        for at, terms in chunks:
            for place, term in enumerate(terms):
                term.write(into[at], rows, fresh=place == 0)
        return into.flatten(2)

    def _add_lookups(self, first: list[Chunk], second: list[Chunk]) -> None:
        """A table's gradients have few rows in common: those alone are compared, row by row."""
        left = self._read(first)
        right = left if second is first else self._read(second)
        for row in left.keys() & right.keys():
            (at, g), (to, h) = left[row], right[row]
            for into, x, y in zip(self.targets, self._groups(g), self._groups(h), strict=True):
                into.index_put_((at[:, None], to[None]), x @ y.T, accumulate=True)

    def _read(self, chunks: list[Chunk]) -> dict[int, tuple[Tensor, Tensor]]:
        """By row of a table, places in the kernel of the samples that read it, and their slopes (R, C, d)."""
        reads = [
            (samples + at.start, rows, slopes)
            for at, terms in chunks
            for term in terms
            if isinstance(term, Scatter)
            for samples, rows, slopes in [term.summed()]
        ]
        samples, rows, slopes = (torch.cat(column) for column in zip(*reads, strict=True))
        order = rows.argsort(stable=True)
        names, counts = torch.unique_consecutive(rows[order], return_counts=True)
        parts = torch.split(order, counts.tolist())
        steps = torch.arange(self.outputs, device=samples.device)
        return {
            row: ((samples[part, None] * self.outputs + steps).flatten(), slopes[part])
            for row, part in zip(names.tolist(), parts, strict=True)
        }

    def _compares_tokens(self, first: list[Chunk], second: list[Chunk]) -> bool:
        """Whether comparing tokens costs less than writing out the gradients of a matrix product.

        S^2 (in / m + out) against in * out multiplications a pair of outputs, with m outputs of a pair of
        samples that share the comparison of their inputs; a token comparison is also written and read.
        """
        if any(len(terms) != 1 or not isinstance(terms[0], Outer) for _, terms in (*first, *second)):
            return False
        term = first[0][1][0]
        assert isinstance(term, Outer)
        fan_in, tokens, fan_out = term.tokens().shape[2], *term.slopes[0].shape[1:]
        shared = self.classes * self.outputs
        return bool(tokens**2 * (fan_in / shared + fan_out + 16) < fan_in * fan_out)

    def _add_tokens(self, at: slice, left: Outer, to: slice, right: Outer) -> None:
        """sum_st (x_is . x'_jt) (g_ics . g'_jdt), a few samples i at a time."""
        x, y = left.tokens(), right.tokens()
        outputs = self.outputs
        step = max(1, self.floats // (len(y) * x.shape[1] * y.shape[1] * (outputs**2 + 1)))
        for start in range(0, len(x), step):
            some = slice(start, min(start + step, len(x)))
            here = slice(at.start + some.start, at.start + some.stop)
            skip = max(0, here.start - to.start) if self.symmetric else 0
            if skip >= len(y):
                continue
            there = slice(to.start + skip, to.stop)
            inputs = torch.einsum("isk,jtk->isjt", x[some], y[skip:])
            slopes = self._groups(left.slope()[some]), self._groups(right.slope()[skip:])
            for into, g, h in zip(self.targets, *slopes, strict=True):
                products = torch.einsum("aso,bto->asbt", g, h)
                products = products.view(-1, outputs, x.shape[1], len(y) - skip, outputs, y.shape[1])
                sums = torch.einsum("icsjdt,isjt->icjd", products, inputs).flatten(2).flatten(0, 1)
                rows = slice(here.start * outputs, here.stop * outputs)
                into[rows, there.start * outputs : there.stop * outputs] += sums


def _add_symmetric(into: Tensor, left: Tensor) -> None:
    """Add the upper half of left left^T, by halves of halves."""
    if len(left) <= _SMALLEST:
        into.addmm_(left, left.T)
    else:
        half = len(left) // 2
        into[:half, half:].addmm_(left[:half], left[half:].T)
        _add_symmetric(into[:half, :half], left[:half])
        _add_symmetric(into[half:, half:], left[half:])


def mirror(kernel: Tensor) -> None:
    """Copy the upper half of the last two dimensions to the lower one, in place."""
    n = kernel.shape[-1]
    for start in range(0, n, 512):
        stop = min(start + 512, n)
        kernel[..., start:stop, :start] = kernel[..., :start, start:stop].mT
        square = kernel[..., start:stop, start:stop]
        square.copy_(square.triu() + square.triu(1).mT)
