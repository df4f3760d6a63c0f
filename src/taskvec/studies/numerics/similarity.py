"""How task vectors lie to each other: angles, signs and ranks, tensor by tensor, without any model."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import NonFinite
from taskvec.names import layer_label
from taskvec.progress import Watch, unwatched
from taskvec.vectors import TaskVector
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


def cosines(products: Tensor) -> Tensor:
    """Inner products (T, T) to cosines, float64; ones on the diagonal, else 0 for a zero vector."""
    lengths = products.diagonal().double().sqrt()
    scale = lengths.outer(lengths)
    tiny = torch.finfo(torch.float64).tiny
    values = torch.where(scale > 0, products.double() / scale.clamp_min(tiny), 0.0)
    return values.clamp(-1, 1).fill_diagonal_(1.0)


def rank_of_set(products: Tensor) -> float:
    """Effective rank of T vectors scaled to unit length, from their inner products (T, T): 1 to T.

    The singular values of a stack of vectors are the square roots of the eigenvalues of its Gram matrix.
    """
    return effective_rank(torch.linalg.eigvalsh(cosines(products)).clamp_min(0).sqrt())


@dataclass(frozen=True)
class Layer:
    """Some tensors of T vectors; layers add up.

    Args:
        products: (T, T), inner products.
        ranks: effective over full rank of each matrix, by vector; none of those that a vector leaves alone.
    """

    products: Tensor
    signs: Signs
    ranks: Sequence[Sequence[float]]

    def __add__(self, other: "Layer") -> "Layer":
        ranks = [[*mine, *others] for mine, others in zip(self.ranks, other.ranks, strict=True)]
        return Layer(self.products + other.products, self.signs + other.signs, ranks)

    def numbers(self) -> dict[str, Any]:
        """Norms, cosines, signs and mean ranks as plain numbers, by the names that records have for them."""
        return {
            "norms": self.products.diagonal().sqrt().tolist(),
            "cosine": cosines(self.products).tolist(),
            "conflict": self.signs.conflict().tolist(),
            "agreement": self.signs.agreement(),
            "effective_rank": [sum(ranks) / len(ranks) if ranks else None for ranks in self.ranks],
        }


def compare_layers(
    vectors: Sequence[TaskVector], *, ranks: bool = True, watch: Watch = unwatched
) -> dict[str, Layer]:
    """Vectors of one base against each other, by layer.

    Args:
        ranks: also the singular values of every matrix, most of the work.

    Raises: NonFinite for NaN or infinity in a vector.
    Cost: every tensor is read once a vector; memory of a few tensors.
    """
    moved = [[name for name in vector if vector.terms_at(name)] for vector in vectors]
    names = list(dict.fromkeys(name for of_vector in sorted(moved, key=len)[::-1] for name in of_vector))
    layers: dict[str, Layer] = {}
    for done, name in enumerate(names, start=1):
        tensor, label = _compare_tensor(vectors, name, ranks), layer_label(name)
        layers[label] = layers[label] + tensor if label in layers else tensor
        watch("tensors", done, len(names))
    return layers


def _compare_tensor(vectors: Sequence[TaskVector], name: str, ranks: bool) -> Layer:
    blocks = [(block @ block.T, count_signs(block)) for block in _blocks(vectors, name)]
    products = torch.stack([product for product, _ in blocks]).sum(0)
    for vector, square in zip(vectors, products.diagonal(), strict=True):
        if not bool(square.isfinite()):
            raise NonFinite(f"{vector.ref}: {name!r} holds NaN or infinity; extract or train it again")
    first, *others = (signs for _, signs in blocks)
    return Layer(products, sum(others, start=first), [_ranks(v, name) if ranks else [] for v in vectors])


def _blocks(vectors: Sequence[TaskVector], name: str) -> Iterator[Tensor]:
    """One tensor of every vector, (T, n) float64, some rows at a time; zero where a vector lacks it."""
    having = [vector for vector in vectors if name in vector]
    in_rows = all(vector.by_rows for vector in having)
    for rows in row_blocks(having[0].specs[name].shape) if in_rows else [None]:
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
