"""How task vectors lie to each other: angles, norms, signs and ranks, tensor by tensor, without any model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError, NonFinite
from taskvec.names import layer_label
from taskvec.progress import Watch, unwatched
from taskvec.vectors import TaskVector
from taskvec.vectors.base import shared_base
from taskvec.weights.blocks import row_blocks


@dataclass(frozen=True)
class Signs:
    """Counts of entries; they add up over tensors.

    Args:
        opposite: (T, T) int64, where two vectors have opposite signs.
        both: (T, T) int64, where neither of the two is zero.
        unanimous: entries that two or more vectors move, all of them the same way.
        shared: entries that two or more vectors move.
    """

    opposite: Tensor
    both: Tensor
    unanimous: int
    shared: int

    def __add__(self, other: "Signs") -> "Signs":
        return Signs(
            self.opposite + other.opposite,
            self.both + other.both,
            self.unanimous + other.unanimous,
            self.shared + other.shared,
        )

    def conflict(self) -> Tensor:
        """opposite / both, (T, T) float64; 0 where no entry is shared."""
        return self.opposite / self.both.clamp_min(1).double()

    def agreement(self) -> float | None:
        """unanimous / shared; none where no entry is shared."""
        return self.unanimous / self.shared if self.shared else None


def count_signs(entries: Tensor) -> Signs:
    """Agreement and conflict of signs of T vectors (T, n) of any floating dtype.

    Two independent zero-mean vectors conflict in half of their entries.

    Source: the interference that TIES resolves, Yadav et al. 2023 (arXiv:2306.01708).
    """
    up, down = (entries > 0).double(), (entries < 0).double()  # exact up to 2^53, and one product each
    moved = up + down
    shared = moved.sum(0) >= 2
    split = (up.sum(0) > 0) & (down.sum(0) > 0)
    return Signs(
        opposite=(up @ down.T + down @ up.T).long(),
        both=(moved @ moved.T).long(),
        unanimous=int((shared & ~split).sum()),
        shared=int(shared.sum()),
    )


def effective_rank(singular_values: Tensor) -> float:
    """exp of the entropy of singular values (k,) that are made to sum to one; 0 when all are zero.

        erank = exp(- sum_i p_i log p_i),   p_i = s_i / sum_j s_j

    Between 1 (rank one) and k (all equal).

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    total = singular_values.double().sum()
    if not total > 0:
        return 0.0
    p = singular_values.double() / total
    return math.exp(float(torch.special.entr(p).sum()))


def cosines(gram: Tensor) -> Tensor:
    """Inner products (T, T) to cosines, float64; ones on the diagonal, else 0 for a zero vector."""
    lengths = gram.diagonal().double().sqrt()
    scale = lengths.outer(lengths)
    found = torch.where(scale > 0, gram.double() / scale.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    return found.clamp(-1, 1).fill_diagonal_(1.0)


def rank_of_set(gram: Tensor) -> float:
    """Effective rank of T vectors scaled to unit length, from their inner products (T, T): 1 to T.

    The singular values of a stack of vectors are the square roots of the eigenvalues of its Gram matrix.
    """
    return effective_rank(torch.linalg.eigvalsh(cosines(gram)).clamp_min(0).sqrt())


@dataclass(frozen=True)
class _Layer:
    gram: Tensor
    signs: Signs
    ranks: Sequence[Sequence[float]]
    """Effective rank over full rank of each matrix, by vector; none of those that a vector leaves alone."""


def similarity(
    vectors: Mapping[str, TaskVector], *, ranks: bool = True, watch: Watch = unwatched
) -> dict[str, Any]:
    """Everything above for a set of task vectors, overall and by layer.

    Args:
        vectors: under labels.
        ranks: also the singular values of every matrix, most of the work.

    Returns: a record of plain data.
    Raises: InputError for fewer than two vectors; NonFinite for NaN or infinity in one; BaseMismatch unless
        all have the same base.
    Cost: every tensor is read once a vector; memory of a few tensors.
    """
    if len(vectors) < 2:
        raise InputError(f"similarity: {len(vectors)} vector given, expected two or more")
    chosen = list(vectors.values())
    base = chosen[0].base
    for vector in chosen[1:]:
        base = shared_base(vector.ref, base, vector.base)
    moved = [[name for name in vector if vector.terms_at(name)] for vector in chosen]
    names = list(dict.fromkeys(name for of_vector in sorted(moved, key=len)[::-1] for name in of_vector))
    by_layer: dict[str, _Layer] = {}
    for done, name in enumerate(names, start=1):
        found = _measured(chosen, name, ranks)
        layer = layer_label(name)
        by_layer[layer] = _joined(by_layer[layer], found) if layer in by_layer else found
        watch("tensors", done, len(names))
    if not by_layer:
        raise InputError("similarity: every vector is zero")
    gram = torch.stack([layer.gram for layer in by_layer.values()]).sum(0)
    first, *others = (layer.signs for layer in by_layer.values())
    signs = sum(others, start=first)
    return {
        "analysis": "similarity",
        "base": {"ref": base.ref, "fingerprint": base.fingerprint()},
        "vectors": list(vectors),
        "norms": gram.diagonal().sqrt().tolist(),
        "cosine": cosines(gram).tolist(),
        "conflict": signs.conflict().tolist(),
        "agreement": signs.agreement(),
        "rank_of_set": rank_of_set(gram),
        "effective_rank": [
            _mean([rank for layer in by_layer.values() for rank in layer.ranks[place]])
            for place in range(len(vectors))
        ],
        "layers": {name: _layer_record(layer, gram) for name, layer in by_layer.items()},
    }


def _layer_record(layer: _Layer, gram: Tensor) -> dict[str, Any]:
    return {
        "norms": layer.gram.diagonal().sqrt().tolist(),
        "share": (
            layer.gram.diagonal() / gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        ).tolist(),
        "cosine": cosines(layer.gram).tolist(),
        "conflict": layer.signs.conflict().tolist(),
        "agreement": layer.signs.agreement(),
        "effective_rank": [_mean(of_vector) for of_vector in layer.ranks],
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _joined(one: _Layer, other: _Layer) -> _Layer:
    ranks = [[*mine, *others] for mine, others in zip(one.ranks, other.ranks, strict=True)]
    return _Layer(one.gram + other.gram, one.signs + other.signs, ranks)


def _measured(vectors: Sequence[TaskVector], name: str, ranks: bool) -> _Layer:
    parts = [_of_block(block) for block in _blocks(vectors, name)]
    gram = torch.stack([gram for gram, _ in parts]).sum(0)
    for vector, square in zip(vectors, gram.diagonal(), strict=True):
        if not bool(square.isfinite()):
            raise NonFinite(f"{vector.ref}: {name!r} holds NaN or infinity; extract or train it again")
    first, *others = (signs for _, signs in parts)
    return _Layer(gram, sum(others, start=first), [_ranks(v, name) if ranks else [] for v in vectors])


def _of_block(block: Tensor) -> tuple[Tensor, Signs]:
    return block @ block.T, count_signs(block)


def _blocks(vectors: Sequence[TaskVector], name: str) -> Iterator[Tensor]:
    """One tensor of every vector, (T, n) float64, some rows at a time; zero where a vector lacks it."""
    shape = next(vector.specs[name].shape for vector in vectors if name in vector)
    pieces = all(vector.by_rows for vector in vectors if name in vector)
    for rows in row_blocks(shape) if pieces else [None]:
        read = [
            vector.read(name, rows).double().reshape(-1) if name in vector else None for vector in vectors
        ]
        zero = torch.zeros_like(next(row for row in read if row is not None))
        yield torch.stack([zero if row is None else row for row in read])


def _ranks(vector: TaskVector, name: str) -> list[float]:
    """Effective over full rank of a matrix, a convolution's flattened to one; nothing for other tensors."""
    if name not in vector or not vector.terms_at(name) or len(vector.specs[name].shape) < 2:
        return []
    matrix = vector.read(name).flatten(1).float()
    return [effective_rank(torch.linalg.svdvals(matrix)) / min(matrix.shape)]
