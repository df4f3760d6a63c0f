"""Random directions with the size of real ones."""

from typing import TYPE_CHECKING

import xxhash

from taskvec.later import torch
from taskvec.vectors.delta import Delta, Summand
from taskvec.vectors.info import VectorInfo
from taskvec.weights import Weights
from taskvec.weights.blocks import rows_of

if TYPE_CHECKING:
    from torch import Tensor


class Noise(Summand):
    """I.i.d. Gaussian entries, rescaled in each tensor to the norm of ``like`` there.

    They depend on the seed and the name of the tensor, not on what was read before.
    """

    splits = False

    def __init__(self, like: Delta, seed: int) -> None:
        super().__init__(
            f"noise like {like.ref}, seed {seed}",
            ("noise", like.identity, seed),
            like.specs,
            like.base,
            parts=(like,),
            recorded=VectorInfo(tuned=f"Gaussian noise, seed {seed}, with the norms of {like.ref}"),
        )
        self._like, self._seed = like, seed

    def changes(self, name: str) -> bool:
        return bool(self._like.terms_at(name))

    def bind(self, base: Weights, *, drop: bool = False) -> "Noise":
        return Noise(self._like.bind(base, drop=drop), self._seed)

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        wanted = torch.linalg.vector_norm(self._like.read(name), dtype=torch.float64)
        generator = torch.Generator().manual_seed(
            xxhash.xxh3_64_intdigest(f"{self._seed}/{name}".encode()) >> 1
        )
        noise = torch.randn(self.specs[name].shape, generator=generator, dtype=torch.float64)
        noise *= wanted / torch.linalg.vector_norm(noise).clamp_min(torch.finfo(torch.float64).tiny)
        return rows_of(noise, rows).to(dtype)
