"""Factors of parameters that hold a matrix for each expert: which parameter, and how it is stored."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from taskvec.errors import KeyMismatch
from taskvec.vectors.lora.contents import Contents, Piece, Stacked
from taskvec.vectors.lora.lowrank import multiplied
from taskvec.vectors.lora.reading import read_stacked
from taskvec.weights import Weights


def resolve_stacks(
    adapter: Contents, base: Weights, names: Mapping[str, str]
) -> dict[str, tuple[str, Piece]]:
    """All changes by their names in the adapter, with the base's name of each.

    PEFT nests the factors of the parameters of one module without saying whose they are; their shapes do.

    Raises: KeyMismatch where no parameter of the base has the shape, or two have.
    """
    found = {given: (names[given], piece) for given, piece in adapter.pieces.items()}
    modules: dict[str, list[str]] = {}
    for given, piece in adapter.pieces.items():
        if isinstance(piece, Stacked):
            modules.setdefault(given.rpartition(".")[0], []).append(given)
    for module, group in modules.items():
        for given, entry in zip(group, _placed(adapter, base, names, module, group), strict=True):
            found[given] = entry
    return found


def _placed(
    adapter: Contents, base: Weights, names: Mapping[str, str], module: str, group: list[str]
) -> tuple[tuple[str, Piece], ...]:
    """The parameter of each group of factors, as the base calls it, with its factors."""
    place = names[group[0]].rpartition(".")[0]
    candidates = [name for name in adapter.settings.parameters(module) if f"{place}.{name}" in base]
    for order in permutations(candidates, len(group)):
        made = [
            _fitted(adapter, base, f"{place}.{name}", f"{module}.{name}", given)
            for name, given in zip(order, group, strict=True)
        ]
        if all(piece is not None for _, piece in made):
            return tuple((name, piece) for name, piece in made if piece is not None)
    shapes = ", ".join(f"{name!r} {base.spec(f'{place}.{name}').shape}" for name in candidates)
    raise KeyMismatch(
        f"{adapter.weights.ref}: the factors of {group[0]!r} fit no parameter of {place!r} in {base.ref} "
        f"({shapes or 'which has none of target_parameters'}); was the adapter trained on another model?"
    )


def _fitted(adapter: Contents, base: Weights, name: str, full: str, given: str) -> tuple[str, Stacked | None]:
    """The factors, if the parameter has their shape."""
    guessed = adapter.pieces[given]
    assert isinstance(guessed, Stacked)
    layer, weights = guessed.layer, adapter.weights
    keys = {"lora_A.weight": layer.a, "lora_B.weight": layer.b}
    try:
        piece = read_stacked(weights, adapter.settings, full, keys)
    except KeyMismatch:  # of another rank, so of another parameter
        return name, None
    inner, outer = weights.spec(layer.a).shape[1], weights.spec(layer.b).shape[0]
    shape = base.spec(name).shape
    if shape == (piece.experts, outer, inner):
        return name, piece
    return name, replace(piece, transposed=True) if shape == (piece.experts, inner, outer) else None


def multiplied_stacks(a: Tensor, b: Tensor, piece: Stacked, rows: slice | None, dtype: torch.dtype) -> Tensor:
    """The products of all experts, or some of their rows taken as one axis.

    Args:
        a: (expert rank, in).
        b: (out, rank expert), times the scaling.
    """
    inner = a.reshape(piece.experts, -1, a.shape[-1])
    outer = b.reshape(b.shape[0], -1, piece.experts).permute(2, 0, 1)
    left, right = (inner.mT, outer.mT) if piece.transposed else (outer, inner)
    height = left.shape[1]
    if rows is None:
        return torch.stack([multiplied(left[n], right[n], None) for n in range(piece.experts)])
    first, last, step = rows.indices(piece.experts * height)
    if step != 1:
        return multiplied_stacks(a, b, piece, slice(0, piece.experts * height), dtype)[rows]
    parts = [multiplied(left[n], right[n], part) for n, part in _by_expert(first, last, height)]
    return torch.cat(parts) if parts else torch.empty((0, right.shape[2]), dtype=dtype)


def _by_expert(first: int, last: int, height: int) -> Iterator[tuple[int, slice]]:
    """The experts that some rows are of, with the rows of each."""
    while first < last:
        expert, start = divmod(first, height)
        stop = min(height, start + last - first)
        yield expert, slice(start, stop)
        first += stop - start
