"""Factors of parameters that hold a matrix for each expert: which parameter, and how it is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING

from taskvec.errors import KeyMismatch
from taskvec.later import torch
from taskvec.vectors.lora.contents import Contents, Piece, Product, Stacked
from taskvec.vectors.lora.lowrank import multiplied
from taskvec.vectors.lora.reading import read_stacked
from taskvec.weights import Weights
from taskvec.weights.network import Network

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 6
"""Parameters of one module that are tried for its factors, in any order."""


def resolve_stacks(
    adapter: Contents, base: Weights, names: Mapping[str, str], network: Network | None
) -> dict[str, tuple[str, Piece]]:
    """All changes by their names in the adapter, with the base's name of each.

    PEFT nests the factors of the parameters of one module, in the order of the network, without saying whose
    they are. Without the network their shapes tell.

    Raises: KeyMismatch where no parameter of the base has the shape.
    """
    found = {given: (names[given], piece) for given, piece in adapter.pieces.items()}
    modules: dict[str, list[str]] = {}
    for given, piece in adapter.pieces.items():
        if isinstance(piece, Stacked):
            modules.setdefault(given.rpartition(".")[0], []).append(given)
    for module, group in modules.items():
        place = _Place(adapter, base, module, names[group[0]].rpartition(".")[0], network)
        found |= dict(zip(group, place.settle(group), strict=True))
    return found


@dataclass(frozen=True)
class _Place:
    """A module with parameters for several experts: its name in the adapter, and in the base."""

    adapter: Contents
    base: Weights
    module: str
    there: str
    network: Network | None

    def settle(self, group: list[str]) -> list[tuple[str, Piece]]:
        """The parameter of each of several factors, as the base calls it, with the factors."""
        candidates = self._candidates()
        for order in permutations(candidates, len(group)):
            made = [self._fitted(name, given) for name, given in zip(order, group, strict=True)]
            fitting = [
                (f"{self.there}.{name}", piece) for name, piece in zip(order, made, strict=True) if piece
            ]
            if len(fitting) == len(group):
                return list(fitting)
        shapes = ", ".join(f"{name!r} {self.base.spec(f'{self.there}.{name}').shape}" for name in candidates)
        raise KeyMismatch(
            f"{self.adapter.weights.ref}: the factors of {group[0]!r} fit no parameter of {self.there!r} in "
            f"{self.base.ref} ({shapes or 'it has none of target_parameters'}); was the adapter trained on "
            "another model?"
        )

    def _candidates(self) -> list[str]:
        held = [
            name
            for name in self.adapter.settings.parameters(self.module)
            if f"{self.there}.{name}" in self.base
        ]
        if self.network is None:
            return held[:_MOST]
        order = {name: place for place, name in enumerate(self.network.specs)}
        return sorted(held, key=lambda name: order.get(f"{self.there}.{name}", len(order)))[:_MOST]

    def _fitted(self, name: str, given: str) -> Stacked | Product | None:
        """The factors, if the parameter has their shape."""
        guessed = self.adapter.pieces[given]
        assert isinstance(guessed, Stacked)
        layer, weights = guessed.layer, self.adapter.weights
        keys = {"lora_A.weight": layer.a, "lora_B.weight": layer.b}
        try:
            piece = read_stacked(weights, self.adapter.settings, f"{self.module}.{name}", keys)
        except KeyMismatch:  # of another rank, so of another parameter
            return None
        inner, outer = weights.spec(layer.a).shape[1], weights.spec(layer.b).shape[0]
        shape = self.base.spec(f"{self.there}.{name}").shape
        if piece.experts == 1 and shape == (outer, inner):
            return Product(piece.layer, transposed=False)
        if shape not in ((piece.experts, outer, inner), (piece.experts, inner, outer)):
            return None
        turned = self._is_turned(name) if inner == outer else shape == (piece.experts, inner, outer)
        return replace(piece, transposed=turned)

    def _is_turned(self, name: str) -> bool:
        """Whether square matrices are stored as (in, out).

        Raises: KeyMismatch without the network, which alone knows.
        """
        if self.network is None:
            raise KeyMismatch(
                f"{self.adapter.weights.ref}: '{self.there}.{name}' holds square matrices, expected "
                "transformers and a config.json beside the base to tell how they lie"
            )
        return bool(getattr(self.network.model.get_submodule(self.there), "is_transposed", False))


def multiplied_stacks(
    a: "Tensor", b: "Tensor", piece: Stacked, rows: slice | None, dtype: "torch.dtype"
) -> "Tensor":
    """The products of all experts, or some of their rows taken as one axis.

    Args:
        a: (expert rank, in).
        b: (out, rank expert), times the scaling.
    """
    outer, inner = unstacked(a, b, piece.experts)
    left, right = (inner.mT, outer.mT) if piece.transposed else (outer, inner)
    height = left.shape[1]
    if rows is None:
        return torch.stack([multiplied(left[n], right[n], None) for n in range(piece.experts)])
    first, last, step = rows.indices(piece.experts * height)
    if step != 1:
        return multiplied_stacks(a, b, piece, slice(0, piece.experts * height), dtype)[rows]
    parts = [multiplied(left[n], right[n], part) for n, part in _by_expert(first, last, height)]
    return torch.cat(parts) if parts else torch.empty((0, right.shape[2]), dtype=dtype)


def unstacked(a: "Tensor", b: "Tensor", experts: int) -> "tuple[Tensor, Tensor]":
    """(experts, out, rank) and (experts, rank, in) of ``b`` and ``a`` as files have them."""
    return b.reshape(len(b), -1, experts).permute(2, 0, 1), a.reshape(experts, -1, a.shape[-1])


def _by_expert(first: int, last: int, height: int) -> Iterator[tuple[int, slice]]:
    """The experts that some rows are of, with the rows of each."""
    while first < last:
        expert, start = divmod(first, height)
        stop = min(height, start + last - first)
        yield expert, slice(start, stop)
        first += stop - start
