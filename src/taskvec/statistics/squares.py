"""Sums of the squared gradients of single samples."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from taskvec.tangent.ntk.terms import Scatter, Term, matrix_shape

_SLICE = 1 << 21
"""Numbers of per-sample gradients that are written out at a time: few enough to be squared in the cache."""


def add_squares(sums: Mapping[str, Tensor], features: Mapping[str, list[Term]], n: int, classes: int) -> None:
    """Add to each sum what n samples contribute: the squares of their gradients, over all classes."""
    for name, terms in features.items():
        rows, columns = matrix_shape(sums[name].shape)
        into = sums[name].view(rows, columns)
        match terms:
            case [Scatter() as table]:  # most rows of a table are read by no sample
                _, read, slopes = table.summed()
                into.index_add_(0, read, slopes.square_().sum(1).to(into.dtype))
            case _:
                add_dense(into, terms, n, classes)


def add_dense(into: Tensor, terms: Sequence[Term], n: int, classes: int) -> None:
    """Add the squares of a matrix (rows, columns), whose gradients are the sums of some terms."""
    rows, columns = into.shape
    height = max(1, min(rows, _SLICE // max(1, n * classes * columns)))
    space = terms[0].tensors()[0].new_empty(n * classes * height * columns)
    for start in range(0, rows, height):
        some = slice(start, min(start + height, rows))
        count = some.stop - some.start
        slopes = space[: n * classes * count * columns].view(n, classes, count, columns)
        for place, term in enumerate(terms):
            term.write(slopes, some, fresh=place == 0)
        into[some] += slopes.square_().sum((0, 1))
