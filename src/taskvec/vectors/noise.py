"""Random directions with the size of real ones."""

from typing import TYPE_CHECKING

import torch
import xxhash
from torch import Tensor

from taskvec.vectors.directions import Source
from taskvec.vectors.info import VectorInfo
from taskvec.weights import Weights
from taskvec.weights.blocks import rows_of

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


class Noise(Source):
    """I.i.d. Gaussian entries, rescaled in each tensor to the norm of ``like`` there."""

    by_rows = False

    def __init__(self, like: "TaskVector", seed: int) -> None:
        super().__init__(
            f"noise like {like.ref}, seed {seed}",
            ("noise", frozenset(like.terms.items()), seed),
            like.specs,
            files=like.files,
            frozen=all(source.frozen for source in like.terms),
        )
        self.info = VectorInfo(tuned=f"Gaussian noise, seed {seed}, with the norms of {like.ref}")
        self._like, self._seed = like, seed

    def touches(self, name: str) -> bool:
        """Whether the vector to be matched changes ``name``."""
        return bool(self._like.terms_at(name))

    def grounded(self, base: Weights) -> "Noise":
        """Noise like what the vector to be matched is among the tensors of ``base``."""
        return Noise(self._like.with_base(base), self._seed)

    def delta(self, name: str, rows: slice | None, dtype: torch.dtype) -> Tensor:
        """Noise that depends on the seed and the name, not on what was read before."""
        wanted = torch.linalg.vector_norm(self._like.read(name), dtype=torch.float64)
        generator = torch.Generator().manual_seed(
            xxhash.xxh3_64_intdigest(f"{self._seed}/{name}".encode()) >> 1
        )
        noise = torch.randn(self.specs[name].shape, generator=generator, dtype=torch.float64)
        noise *= wanted / torch.linalg.vector_norm(noise).clamp_min(torch.finfo(torch.float64).tiny)
        return rows_of(noise, rows).to(dtype)
