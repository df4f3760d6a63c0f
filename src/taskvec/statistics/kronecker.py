"""The curvature in one matrix, or on the diagonal, summed up over per-sample gradients."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from taskvec.statistics.blocks import Block
from taskvec.statistics.probes import Piece
from taskvec.statistics.squares import add_dense, add_squares
from taskvec.tangent.ntk.terms import Dense, Outer, Term, jacobian


class Diagonal:
    """Sums of the squares of some parameters' gradients, in float64."""

    def __init__(self, parameters: Mapping[str, Tensor], names: Collection[str]) -> None:
        self._sums = {
            name: torch.zeros_like(value, dtype=torch.float64)
            for name, value in parameters.items()
            if name in names
        }

    def add(self, piece: Piece) -> None:
        """Add what some samples contribute."""
        features = {name: piece.features[name] for name in self._sums if name in piece.features}
        add_squares(self._sums, features, piece.n, piece.classes)

    def means(self, draws: int) -> dict[str, Tensor]:
        """By parameter, the mean over so many draws."""
        return {name: total / draws for name, total in self._sums.items()}


class Moments:
    """Sums of a a^T over a layer's inputs and of g g^T over the gradients at its outputs, in float64.

    Of a parameter whose gradients do not come as products g a^T, the factors are the second moments of the
    rows and of the columns of the gradients; those of a vector are all second moments there are.
    """

    def __init__(self, block: Block, like: Tensor) -> None:
        self._block, self._products = block, True
        rows, columns = block.sides
        self._inner = like.new_zeros(columns, columns, dtype=torch.float64)
        self._outer = like.new_zeros(rows, rows, dtype=torch.float64)
        self._places = 0

    def add(self, piece: Piece) -> None:
        """Add what some samples contribute."""
        terms = piece.features.get(self._block.weight, [])
        products = [term for term in terms if isinstance(term, Outer)]
        self._products = len(products) == len(terms)
        if not self._products:
            self._add_gradients(_gradients(self._block, piece))
        for term in products if self._products else []:
            self._add_product(term, piece.reaching[term.slopes[0].shape[1]])

    def _add_product(self, term: Outer, reaching: Tensor) -> None:
        rows = _extended(self._block, term.tokens()[reaching])
        slopes = torch.cat([slope[reaching] for slope in term.slopes])
        self._inner += rows.mT @ rows
        self._outer += slopes.mT @ slopes
        self._places += len(rows)

    def _add_gradients(self, gradients: Tensor) -> None:
        tall, wide = gradients.flatten(0, 1), gradients.transpose(0, 1).flatten(1)
        self._inner += tall.mT @ tall
        self._outer += wide @ wide.mT

    def factors(self, draws: int) -> tuple[Tensor, Tensor]:
        """A (columns, columns) and B (rows, rows), of so many probes of samples; zero where nothing flows."""
        if self._products:
            inner, outer = self._inner / max(1, self._places), self._outer / draws
        else:
            inner = self._inner / draws
            outer = self._outer / (draws * inner.trace().clamp(min=torch.finfo(inner.dtype).tiny))
        return _symmetric(inner), _symmetric(outer)


class Rotated:
    """The squared gradients of a matrix in the eigenvectors of its factors.

    Source: George et al. 2018, arXiv:1806.03884.
    """

    def __init__(self, block: Block, inner: Tensor, outer: Tensor) -> None:
        self._block, self._sums = block, inner.new_zeros(block.sides)
        self.inner, self.outer = (torch.linalg.eigh(factor)[1] for factor in (inner, outer))

    def add(self, piece: Piece) -> None:
        """Add what some samples contribute."""
        terms = piece.features.get(self._block.weight, [])
        if terms:
            like = terms[0].tensors()[0]
            inner, outer = self.inner.to(like), self.outer.to(like)
            if all(isinstance(term, Outer) for term in terms):
                turned: list[Term] = [self._turn(term, inner, outer) for term in terms]
            else:
                gradients = outer.mT @ _gradients(self._block, piece) @ inner
                turned = [Dense(gradients.view(piece.n, piece.classes, *self._block.sides))]
            add_dense(self._sums, turned, piece.n, piece.classes)

    def _turn(self, term: Term, inner: Tensor, outer: Tensor) -> Outer:
        assert isinstance(term, Outer)
        rows = _extended(self._block, term.tokens()) @ inner
        return Outer(rows, [slope @ outer for slope in term.slopes])

    def squares(self, draws: int) -> Tensor:
        """(rows, columns), the mean over so many probes of samples."""
        return self._sums / draws


def _extended(block: Block, rows: Tensor) -> Tensor:
    """Inputs (…, columns), with a one behind each for the bias."""
    return rows if block.bias is None else torch.cat([rows, torch.ones_like(rows[..., :1])], -1)


def _gradients(block: Block, piece: Piece) -> Tensor:
    """(n * classes, rows, columns)."""
    shapes = {block.weight: block.shape}
    if block.bias is not None:
        shapes[block.bias] = torch.Size([block.sides[0]])
    found = [
        jacobian(piece.features[name], piece.n, piece.classes, shape).flatten(0, 1)
        for name, shape in shapes.items()
    ]
    return block.joined(found[0], found[1] if block.bias is not None else None)


def _symmetric(moments: Tensor) -> Tensor:
    return (moments + moments.mT) / 2
