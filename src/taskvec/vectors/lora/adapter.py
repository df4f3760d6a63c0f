"""LoRA adapters as directions: for every layer a product of two thin matrices, computed by rows."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors.base import Base
from taskvec.vectors.delta import Summand, computing
from taskvec.vectors.info import BaseInfo, VectorInfo
from taskvec.vectors.lora.files import (
    Layer,
    Piece,
    Product,
    Saved,
    Settings,
    Shift,
    read_parts,
    read_settings,
)
from taskvec.vectors.lora.fit import (
    bias_of,
    explain_foreign,
    holds_same,
    is_silently_tied,
    is_transposed,
    kind,
    match_names,
    orientations,
)
from taskvec.vectors.lora.lowrank import multiplied
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import row_blocks, rows_of
from taskvec.weights.dtypes import EDITABLE, compute_dtype, short

_log = logging.getLogger(__name__)

_KEPT = 8
"""Layers whose factors stay in memory: a few for every thread."""


class Adapter(Summand):
    """The direction of a LoRA adapter.

    Without a base, the products are those of the file, (out, in), under the names of the file. A base says
    how its layers are called, which of them are stored as (in, out), and what DoRA and tensors saved whole
    start from.
    """

    def __init__(
        self,
        weights: Weights,
        settings: Settings,
        pieces: Mapping[str, Piece],
        specs: Mapping[str, TensorSpec],
        base: Weights | None = None,
    ) -> None:
        relative = any(map(_is_relative, pieces.values()))
        super().__init__(
            weights.ref,
            (
                "adapter",
                weights.identity,
                settings.model_dump_json(),
                None if base is None else base.identity,
            ),
            specs,
            Base(settings.base_model_name_or_path, unbound=True) if base is None else Base.of(base),
            parts=(weights, base) if base is not None and relative else (weights,),
            recorded=VectorInfo(
                base=BaseInfo(ref=settings.base_model_name_or_path),
                tuned=weights.ref,
                regime="lora",
                training={"peft": settings.record()},
            ),
        )
        self.own_files = () if weights.adapter is None else (weights.adapter.resolve(),)
        self.weights, self.settings, self.pieces = weights, settings, pieces
        self.relative = relative
        """Whether some of it is known only relative to the weights of the base."""
        self._start = base
        self._factors: Callable[[Layer, torch.dtype], tuple[Tensor, Tensor]] = lru_cache(_KEPT)(
            self._read_factors
        )
        self._lengths: Callable[[str, torch.dtype], Tensor] = lru_cache(None)(self._column_lengths)

    def compute(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """The change of one tensor, exact but for rounding in ``dtype``.

        Raises: InputError if it takes a base that is not at hand.
        """
        if rows is not None and len(self.specs[name].shape) > 2:
            return rows_of(self.compute(name, None, dtype), rows)
        match self.pieces[name]:
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
        return super().in_rows(name) and len(self.specs[name].shape) <= 2

    def own_bytes(self, name: str) -> int:
        piece, factors = self.pieces.get(name), 0
        if isinstance(piece, Product):
            factors = sum(self.weights.spec(key).numel for key in (piece.layer.a, piece.layer.b))
        return super().own_bytes(name) + factors * self.specs[name].dtype.itemsize

    def bind(self, base: Weights, *, drop: bool = False) -> "Adapter":
        """The direction among the tensors of ``base``.

        Args:
            drop: leave out tensors saved whole that the base lacks, such as a new head.

        Raises: KeyMismatch for layers that the base lacks, or holds in another shape.
        """
        if not self.base.unbound:
            return self
        names = match_names(self.pieces, base)
        turned = self._orientation(base, names)
        pieces: dict[str, Piece] = {}
        for own, piece in self.pieces.items():
            name = names[own]
            if name not in base:
                if isinstance(piece, Saved) and drop:
                    _log.warning("%s: %r is left out, as the base lacks it", self.ref, own)
                    continue
                raise KeyMismatch(f"{self.ref}: {explain_foreign(own, piece, base)}")
            if isinstance(piece, Saved) and holds_same(self.weights, piece.key, base, name):
                continue
            self._check_shape(base, name, own)
            self._check_alone(base, name, piece)
            if isinstance(piece, Product):
                start = piece.start and (
                    None if holds_same(self.weights, piece.start, base, name) else piece.start
                )
                piece = replace(piece, transposed=turned(own), start=start)
            if name in pieces:
                raise KeyMismatch(
                    f"{self.ref}: {own!r} is {name!r} in {base.ref}, and so is another layer of the adapter, "
                    "expected one; remove the one that is not meant"
                )
            pieces[name] = piece
        specs = {name: computing(base.spec(name)) for name in base if base.spec(name).dtype in EDITABLE}
        return Adapter(self.weights, self.settings, pieces, specs, base)

    def changes(self, name: str) -> bool:
        return name in self.pieces

    def _orientation(self, base: Weights, names: Mapping[str, str]) -> Callable[[str], bool]:
        """Whether a layer's weights are stored as (in, out).

        Shapes tell, except for square matrices. These are as other layers of their kind in the model: a bias
        is as long as there are outputs, and only layers with a bias are ever (in, out). What the settings
        say is true of the layer that PEFT saw last.
        """
        known = orientations({name: base.spec(name).shape for name in base})
        for own, name in names.items():
            have = self.specs[own].shape
            if isinstance(self.pieces[own], Product) and name in base and have != have[::-1]:
                known.setdefault(kind(name), set()).add(base.spec(name).shape == have[::-1])

        def goes(own: str) -> bool:
            piece, have, name = self.pieces[own], self.specs[own].shape, names[own]
            if isinstance(piece, Product) and piece.layer.embedding:
                return True
            if have != have[::-1] or len(base.spec(name).shape) != 2:
                return base.spec(name).shape == have[::-1]
            if bias_of(name) not in base:
                return False
            transposed = is_transposed(name, known, self.settings.fan_in_fan_out)
            if transposed is None:
                raise KeyMismatch(
                    f"{self.ref}: {name!r} is square and {base.ref} has layers of both orientations, "
                    "expected one of its kind that tells which it has; merge the adapter with PEFT"
                )
            return transposed

        return goes

    def _check_shape(self, base: Weights, name: str, own: str) -> None:
        have, want, piece = self.specs[own].shape, base.spec(name).shape, self.pieces[own]
        if base.spec(name).dtype not in EDITABLE:
            raise KeyMismatch(
                f"{self.ref}: {name!r} has dtype {short(base.spec(name).dtype)} in {base.ref}, "
                "expected a floating-point tensor"
            )
        if isinstance(piece, Product) and not piece.layer.embedding and len(want) > 1:
            flat = (want[0], math.prod(want[1:]))
            fits = have == flat or (len(want) == 2 and have == want[::-1])
        else:
            fits = have == want
        if isinstance(piece, Product) and piece.start is not None:
            fits = fits and self.weights.spec(piece.start).shape == want
        if not fits:
            raise KeyMismatch(
                f"{self.ref}: {name!r} has shape {have}, expected {want} as in the base {base.ref}; "
                "was it trained on another model, or with another vocabulary?"
            )

    def _check_alone(self, base: Weights, name: str, piece: Piece) -> None:
        """Refuse a change to one use of weights that serve two layers."""
        partners = [alias for alias, kept in base.tied.items() if name in (alias, kept)]
        embeds = isinstance(piece, Saved) or (isinstance(piece, Product) and piece.layer.embedding)
        if partners or (embeds and is_silently_tied(base, name)):
            other = next((base.tied[p] if p == name else p for p in partners), "the output layer")
            raise KeyMismatch(
                f"{self.ref}: {name!r} shares its weights with {other} in {base.ref}, expected weights of "
                "their own, as the adapter changes one layer alone; save the base untied first"
            )

    def _read_start(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        if self._start is None:
            raise InputError(
                f"{self.ref}: {name!r} is known only relative to the base (DoRA, or saved whole), which "
                "is not at hand; give it with with_base(base), or: taskvec diff BASE ADAPTER -o VECTOR"
            )
        return self._start.read(name, rows).to(dtype)

    def _tuned(self, name: str, product: Product, change: Tensor, rows: slice | None) -> Tensor:
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

    def _read_before(self, name: str, product: Product, rows: slice | None, dtype: torch.dtype) -> Tensor:
        if product.start is not None:
            return self.weights.read(product.start, rows).to(dtype)
        return self._read_start(name, rows, dtype)

    def _product(self, product: Product, rows: slice | None, dtype: torch.dtype) -> Tensor:
        a, b = self._factors(product.layer, dtype)
        return multiplied(a.T, b.T, rows) if product.transposed else multiplied(b, a, rows)

    def _read_factors(self, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(rank, in) and (out, rank), the second times the scaling."""
        a, b = self.weights.read(layer.a).to(dtype), self.weights.read(layer.b).to(dtype)
        return a.reshape(len(a), -1), b.reshape(len(b), -1) * layer.scaling

    def _column_lengths(self, name: str, dtype: torch.dtype) -> Tensor:
        """The Euclidean length of every column of base plus change, in blocks of rows."""
        piece = self.pieces[name]
        assert isinstance(piece, Product)
        total: Tensor | float = 0.0
        for rows in row_blocks(self.specs[name].shape):
            block = self._product(piece, rows, dtype) + self._read_before(name, piece, rows, dtype)
            total = total + block.double().square().sum(0)
        return torch.as_tensor(total).sqrt().to(dtype)


def _is_relative(piece: Piece) -> bool:
    """Whether a change is known only relative to the weights of the base."""
    if isinstance(piece, Product):
        return bool(piece.layer.magnitude or piece.start)
    return isinstance(piece, Saved)


def open_adapter(weights: Weights) -> Adapter:
    """The adapter whose factors ``weights`` are.

    Raises: InputError for a kind of adapter that is no known change of weights; KeyMismatch for factors that
        lack their partner; CorruptFile.
    """
    assert weights.adapter is not None, f"{weights.ref} is no adapter"
    settings = read_settings(weights.adapter)
    layers, saved = read_parts(weights, settings)
    pieces: dict[str, Piece] = {}
    specs: dict[str, TensorSpec] = {}
    for layer in layers:
        a, b = weights.spec(layer.a), weights.spec(layer.b)
        dtype = compute_dtype(torch.promote_types(a.dtype, b.dtype))
        shape = (b.shape[0], math.prod(a.shape[1:]))
        name = f"{layer.module}.weight"
        pieces[name] = Product(layer, layer.embedding)
        specs[name] = TensorSpec(shape[::-1] if layer.embedding else shape, dtype)
        if layer.bias is not None:
            pieces[f"{layer.module}.bias"] = Shift(layer.bias, layer.scaling)
            specs[f"{layer.module}.bias"] = TensorSpec(shape[:1], dtype)
    for name, key in saved.items():
        piece = pieces.get(name)
        if isinstance(piece, Product):
            pieces[name] = replace(piece, start=key)
        elif piece is not None:
            raise KeyMismatch(
                f"{weights.ref}: {name!r} is changed and saved whole ({key!r}), expected one of them"
            )
        else:
            pieces[name], specs[name] = Saved(key), computing(weights.spec(key))
    return Adapter(weights, settings, pieces, specs)
