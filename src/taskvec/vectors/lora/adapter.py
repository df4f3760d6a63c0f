"""LoRA adapters as directions: for every layer a product of two thin matrices, computed by rows."""

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.vectors.base import Base
from taskvec.vectors.delta import Summand
from taskvec.vectors.info import BaseInfo, VectorInfo
from taskvec.vectors.lora.contents import Contents, Layer, Product, Rows, Saved, Scales, Shift, Stacked
from taskvec.vectors.lora.fit import fit
from taskvec.vectors.lora.growing import grow
from taskvec.vectors.lora.loaded import Reverted, place, renamed
from taskvec.vectors.lora.lowrank import multiplied
from taskvec.vectors.lora.reading import read_contents
from taskvec.vectors.lora.stacks import multiplied_stacks, unstacked
from taskvec.weights import Weights
from taskvec.weights.blocks import row_blocks, rows_of

if TYPE_CHECKING:
    from torch import Tensor

# Threads take blocks of the same few layers in turn; each would else read both factors for every block.
_KEPT = 8
"""Layers whose factors stay in memory."""


class Adapter(Summand):
    """The direction of a LoRA adapter.

    Without a base, the products are those of the file, (out, in), under the names of the file. A base says
    how its layers are called, which of them are stored as (in, out), and what DoRA and tensors saved whole
    start from.
    """

    def __init__(self, contents: Contents, base: Weights | None = None) -> None:
        weights, settings = contents.weights, contents.settings
        made_for = settings.base_model_name_or_path
        base_identity = None if base is None else base.identity
        super().__init__(
            weights.ref,
            ("adapter", weights.identity, settings.model_dump_json(), base_identity),
            contents.specs,
            Base(made_for, unbound=True) if base is None else Base.of(base),
            parts=(weights, base) if base is not None and contents.relative else (weights,),
            recorded=VectorInfo(
                base=BaseInfo(ref=made_for),
                tuned=weights.ref,
                regime="lora",
                training={"peft": settings.record()},
            ),
        )
        beside = weights.adapter
        self.own_files = () if beside is None or not beside.is_file() else (beside.resolve(),)
        self.contents, self.weights, self._start = contents, weights, base
        self._factors: Callable[[Layer, torch.dtype], tuple[Tensor, Tensor]] = lru_cache(_KEPT)(
            self._read_factors
        )
        self._lengths: Callable[[str, torch.dtype], Tensor] = lru_cache(None)(self._column_lengths)

    def __reduce__(self) -> tuple[type["Adapter"], tuple[Contents, Weights | None]]:
        """Made anew from its files, without the factors that are in memory."""
        return Adapter, (self.contents, self._start)

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """The change of one tensor, exact but for rounding in ``dtype``.

        Raises: InputError if it takes a base that is not at hand.
        """
        if rows is not None and not self.in_rows(name):
            return rows_of(self.compute(name, None, dtype), rows)
        match self.contents.pieces[name]:
            case Stacked(layer) as piece:
                return multiplied_stacks(*self._factors(layer, dtype), piece, rows, dtype)
            case Scales() as piece:
                return self._scaled(name, piece, rows, dtype)
            case Rows() as piece:
                return self._replaced(name, piece, rows, dtype)
            case Shift(key, scaling):
                return self.weights.read(key, rows).to(dtype).reshape(-1) * scaling
            case Saved(key):
                return self.weights.read(key, rows).to(dtype) - self._read_start(name, rows, dtype)
            case Product(layer, _, start) as product:
                change = self._product(product, rows, dtype).reshape(-1, *self.specs[name].shape[1:])
                if layer.magnitude is None and start is None:
                    return change
                return self._tuned(name, product, change, rows) - self._read_start(name, rows, dtype)

    def in_rows(self, name: str) -> bool:
        """Whether rows can be had by themselves: not those of convolutions, whose factors go by filters."""
        stacked = isinstance(self.contents.pieces.get(name), Stacked)
        return super().in_rows(name) and (stacked or len(self.specs[name].shape) <= 2)

    def own_bytes(self, name: str) -> int:
        piece, factors = self.contents.pieces.get(name), 0
        if isinstance(piece, Product | Stacked):
            factors = sum(self.weights.spec(key).numel for key in (piece.layer.a, piece.layer.b))
        return super().own_bytes(name) + factors * self.specs[name].itemsize

    def bind(self, base: Weights, *, drop: bool = False) -> Summand:
        return bind_contents(self.contents, base, drop=drop) if self.base.unbound else self

    def room(self, base: Weights) -> Weights:
        """The base with the rows of tokens that the adapter was saved with beyond those of the base."""
        return grow(self.contents, base) if self.base.unbound else super().room(base)

    def changes(self, name: str) -> bool:
        return name in self.contents.pieces

    def plain(self, name: str) -> Product | Stacked | None:
        """The factors that are all that changes a tensor; ``None`` where more does, or nothing."""
        piece = self.contents.pieces.get(name)
        if isinstance(piece, Product) and (piece.layer.magnitude or piece.start):
            return None
        if self.contents.components:  # of models whose names a base alone tells
            return None
        return piece if isinstance(piece, Product | Stacked) else None

    def factors(self, piece: Product | Stacked, dtype: "torch.dtype") -> "tuple[Tensor, Tensor]":
        """(experts, out, rank) and (experts, rank, in), whose products are what plain factors change."""
        a, b = self._factors(piece.layer, dtype)
        return unstacked(a, b, piece.experts if isinstance(piece, Stacked) else 1)

    def _read_start(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        if self._start is None:
            raise InputError(
                f"{self.ref}: {name!r} is known only relative to the base (DoRA, or saved whole), which "
                "is not at hand; give it with with_base(base), or: taskvec diff BASE ADAPTER -o VECTOR"
            )
        return self._start.read(name, rows).to(dtype)

    def _scaled(self, name: str, piece: Scales, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """What factors along one axis change."""
        start = self._read_start(name, rows, dtype)
        steps = self.weights.read(piece.key).to(dtype).reshape(-1) - 1
        if piece.axis == 0:
            steps = steps if rows is None else steps[rows]
            return start * steps.reshape(-1, *[1] * (start.ndim - 1))
        if len(steps) != start.shape[1]:  # of a convolution in groups, each of which sees some of the inputs
            steps = steps.reshape(-1, start.shape[1])
            steps = steps.repeat_interleave(len(start) // len(steps), 0)
        return start * steps.reshape(*steps.shape, *[1] * (start.ndim - 2))

    def _replaced(self, name: str, piece: Rows, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """What the rows of some tokens differ by; and all others, where the weights were saved too."""
        start = self._read_start(name, rows, dtype)
        if piece.start is None:
            change = torch.zeros_like(start)
        else:
            change = self.weights.read(piece.start, rows).to(dtype) - start
        first, last, step = (rows or slice(None)).indices(self.specs[name].shape[0])
        inside = [(n, row) for n, row in enumerate(piece.indices) if row in range(first, last, step)]
        if inside:
            given, places = zip(*inside, strict=True)
            here = torch.tensor([(row - first) // step for row in places])
            change[here] = self.weights.read(piece.key).to(dtype)[list(given)] - start[here]
        return change

    def _tuned(self, name: str, product: Product, change: "Tensor", rows: slice | None) -> "Tensor":
        """The weights that training ended with, made of their change in place."""
        dtype, layer = change.dtype, product.layer
        tuned = change.add_(self._read_before(name, product, rows, dtype))
        if layer.magnitude is None:
            return tuned
        lengths = self.weights.read(layer.magnitude).to(dtype).reshape(-1)
        if product.transposed:
            return tuned.mul_(lengths / self._lengths(name, dtype))
        flat = tuned.view(len(tuned), -1)
        factors = (lengths if rows is None else lengths[rows]) / torch.linalg.vector_norm(flat, dim=1)
        return flat.mul_(factors[:, None]).view(tuned.shape)

    def _read_before(self, name: str, product: Product, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        if product.start is not None:
            return self.weights.read(product.start, rows).to(dtype)
        return self._read_start(name, rows, dtype)

    def _product(self, product: Product, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        a, b = self._factors(product.layer, dtype)
        return multiplied(a.T, b.T, rows) if product.transposed else multiplied(b, a, rows)

    def _read_factors(self, layer: Layer, dtype: "torch.dtype") -> "tuple[Tensor, Tensor]":
        """(rank, in) and (out, rank), the second times the scaling."""
        a, b = self.weights.read(layer.a).to(dtype), self.weights.read(layer.b).to(dtype)
        if layer.flipped:
            a, b = a.T, b.T
        return a.reshape(len(a), -1), b.reshape(len(b), -1) * layer.scaling

    def _column_lengths(self, name: str, dtype: "torch.dtype") -> "Tensor":
        """The Euclidean length of every column of base plus change, in blocks of rows."""
        piece = self.contents.pieces[name]
        assert isinstance(piece, Product)
        total: Tensor | float = 0.0
        for rows in row_blocks(self.specs[name].shape):
            block = self._product(piece, rows, dtype) + self._read_before(name, piece, rows, dtype)
            total = total + block.double().square().sum(0)
        return torch.as_tensor(total).sqrt().to(dtype)


def bind_contents(contents: Contents, base: Weights, *, drop: bool = False) -> Summand:
    """What an adapter changes of a base, under the names and in the shapes that the base's files have.

    Raises: what ``fit`` does.
    """
    contents, view = place(contents, base)
    if view is None:
        return Adapter(fit(contents, base, drop=drop), base)
    fitted = fit(contents, view, drop=drop, network=view.network)
    if view.layout.converted:
        return Reverted(Adapter(fitted, view), view)
    return Adapter(renamed(fitted, view), base)


def open_adapter(weights: Weights) -> Adapter:
    """The direction of the adapter whose factors ``weights`` are; raises what ``read_contents`` does."""
    return Adapter(read_contents(weights))
