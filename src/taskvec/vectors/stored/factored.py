"""Deltas as products of two thin matrices, kept as such in memory and in files."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from taskvec.later import torch
from taskvec.vectors.delta import Delta, Summand
from taskvec.vectors.directions import Stored
from taskvec.vectors.info import CompactInfo
from taskvec.vectors.stored.compact.decoding import Decoded
from taskvec.vectors.stored.compact.form import part_name
from taskvec.vectors.stored.compact.low_rank import LowRank
from taskvec.weights.in_memory import MemoryWeights

if TYPE_CHECKING:
    from torch import Tensor


class Pair(NamedTuple):
    """Factors (m, rank) and (rank, n) of a matrix."""

    left: "Tensor"
    right: "Tensor"

    def product(self) -> "Tensor":
        """(m, n)."""
        return self.left @ self.right


def factored(pairs: Mapping[str, Pair], shapes: Mapping[str, tuple[int, ...]]) -> Decoded:
    """Tensors by name, each multiplied when it is read.

    Args:
        pairs: the factors of each, of the matrix with all axes but the first in one.
        shapes: of the tensors.
    """
    parts = {part_name(name, part): t for name, pair in pairs.items() for part, t in pair._asdict().items()}
    info = CompactInfo(
        form=LowRank.name,
        settings={"rank": max(len(pair.right) for pair in pairs.values())},
        error=0.0,
        errors=dict.fromkeys(pairs, 0.0),
        coded={name: tuple(shapes[name]) for name in pairs},
    )
    held = MemoryWeights("deltas", {name: part.contiguous() for name, part in parts.items()})
    return Decoded(held, LowRank.parse("", info.settings), info)


def factors_in(summand: Summand) -> Decoded | None:
    """The factors that a direction is held as, if nothing was lost by that."""
    held = summand.weights if isinstance(summand, Stored) else None
    if isinstance(held, Decoded) and isinstance(held.form, LowRank) and held.info.error == 0:
        return held
    return None


def as_stored(vector: Delta, dtype: "torch.dtype | None") -> Decoded | None:
    """The factors that a vector is, in ``dtype`` or their own; ``None`` for one that is more than factors."""
    terms = {term for name in vector for term in vector.terms_at(name)}
    [(summand, coefficient)] = terms if len(terms) == 1 else [(None, 0.0)]
    held = None if summand is None or coefficient != 1 else factors_in(summand)
    if held is None:
        return None
    kept = [name for name in held if vector.terms_at(name)]
    if dtype is None and len(kept) == len(held):
        return held
    if held.info.coded.keys() != held.keys():
        return None
    pairs = {name: Pair(*(half.to(dtype or half.dtype) for half in held.pair(name))) for name in kept}
    return factored(pairs, held.info.coded)
