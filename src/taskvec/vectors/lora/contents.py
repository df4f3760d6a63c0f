"""What an adapter holds: changes of tensors, by their names in the model that it was trained on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from taskvec.vectors.lora.settings import Settings
from taskvec.weights import TensorSpec, Weights


@dataclass(frozen=True)
class Layer:
    """The tensors of one adapted layer, by their names in the file.

    Attributes:
        module: the layer's name in the model.
        a: (rank, in, ...).
        b: (out, rank, ...).
        embedding: whether the layer looks up the columns of ``b a``.
        magnitude: (out,), the lengths that DoRA gives the rows, if it is one.
        bias: (out,), added to the layer's bias, if there is one.
        flipped: whether the file holds (in, rank) and (rank, out) instead.
    """

    module: str
    a: str
    b: str
    scaling: float
    embedding: bool = False
    magnitude: str | None = None
    bias: str | None = None
    flipped: bool = False

    def shape_in(self, weights: Weights) -> tuple[int, ...]:
        """The shape (out, in) of the product of the factors; (in, out) for an embedding."""
        a, b = weights.spec(self.a).shape, weights.spec(self.b).shape
        inner, outer = (a[0], b[-1]) if self.flipped else (math.prod(a[1:]), b[0])
        return (inner, outer) if self.embedding else (outer, inner)


@dataclass(frozen=True)
class Product:
    """``scaling b a``; by rows of ``b``, or of ``a`` where the layer keeps its weights transposed.

    ``start`` are the weights that it was added to in training, where they were saved too.
    """

    layer: Layer
    transposed: bool
    start: str | None = None


@dataclass(frozen=True)
class Stacked:
    """A product for each of several experts, whose weights are one tensor.

    The file holds ``a`` as (expert rank, in) and ``b`` as (out, rank expert); the weights are
    (expert, out, in), or (expert, in, out) if ``transposed``.
    """

    layer: Layer
    experts: int
    transposed: bool = False


@dataclass(frozen=True)
class Shift:
    """``scaling b`` for a bias."""

    key: str
    scaling: float


@dataclass(frozen=True)
class Saved:
    """A tensor that was trained and saved whole; the direction is what it differs from the base by."""

    key: str


@dataclass(frozen=True)
class Rows:
    """Rows that take the place of those of the base, or of ``start`` where that was saved too."""

    key: str
    indices: tuple[int, ...]
    start: str | None = None


@dataclass(frozen=True)
class Scales:
    """Factors of (IA)³, of the inputs or outputs of a layer; they lie along ``axis`` of its weights."""

    key: str
    of_inputs: bool
    axis: int = 0


Piece = Product | Stacked | Shift | Saved | Rows | Scales


@dataclass(frozen=True)
class Contents:
    """The changes of tensors that lie in a folder.

    Attributes:
        weights: that hold the factors.
        settings: what they stand for.
        pieces: the changes, by the names of the adapter or, once it was fitted, of a base.
        specs: shape, and dtype of computing, of every tensor, changed or not; before it was fitted of those
            whose shape the adapter tells.
        components: what the names of each model begin with, where they are of several.
        joined: whether ``_`` stands for every ``.`` in the names of modules.
    """

    weights: Weights
    settings: Settings
    pieces: Mapping[str, Piece]
    specs: Mapping[str, TensorSpec]
    components: frozenset[str] = frozenset()
    joined: bool = False

    def renamed(self, names: Mapping[str, str]) -> "Contents":
        """The pieces that ``names`` lists, under the names that it gives them."""
        return Contents(
            self.weights,
            self.settings,
            {names[name]: piece for name, piece in self.pieces.items() if name in names},
            {names[name]: spec for name, spec in self.specs.items() if name in names},
        )

    @property
    def relative(self) -> bool:
        """Whether some changes are known only relative to the weights of the base."""
        return any(map(_is_relative, self.pieces.values()))


def _is_relative(piece: Piece) -> bool:
    if isinstance(piece, Product):
        return bool(piece.layer.magnitude or piece.start)
    return isinstance(piece, Saved | Rows | Scales)
