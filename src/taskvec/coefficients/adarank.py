"""AdaRank: coefficients of tensors, and which singular directions of each vector's matrices are kept."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from taskvec.coefficients.ranks import Ranks, add_ranks, along_ranks, choose, first_logits, ranked_matrices
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.streaming import Stream
from taskvec.coefficients.weighted import Weighted
from taskvec.errors import NonFinite
from taskvec.rules.matrix import svd
from taskvec.vectors import TaskVector
from taskvec.weights import Weights


class Ranked(Weighted):
    """``theta_0 + sum_t a_t U_t diag(mask_t s_t) V_t`` in matrices of attention and feed-forward layers, and
    ``theta_0 + sum_t a_t tau_t`` in other tensors.

    Singular directions are computed once and kept in a file; a step reads those of one matrix of one vector
    at a time.

    Args:
        scratch: an empty folder for it; it takes about 1.5 times the room of all vectors, or less where
            they are of low rank.

    Raises: NonFinite for a matrix that has no singular directions.
    Source: AdaRank (arXiv:2503.22178), on the pre-trained model, with hard masks.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        stream: Stream,
        groups: Groups,
        settings: CoefficientSettings,
        scratch: Path,
    ) -> None:
        super().__init__(base, stream, groups, settings)
        self._file = _File(scratch)
        self._places: dict[str, dict[int, slice]] = {}
        logits = [torch.zeros(0, dtype=torch.float64)]
        first = 0
        for name in ranked_matrices({name: tuple(value.shape) for name, value in self.model.items()}):
            kept = round(settings.ratio * min(base[name].shape))
            self._places[name] = {}
            for place, ranks in self._decomposed(name):
                logits.append(first_logits(len(ranks.s), kept))
                self._places[name][place] = slice(first, first + len(ranks.s))
                first += len(ranks.s)
        self.leaves["ranks"] = torch.cat(logits).requires_grad_()

    def pull(self) -> None:
        """Gradients in coefficients and logits."""
        self._slopes = torch.zeros_like(self.leaves["ranks"])
        super().pull()
        self.leaves["ranks"].grad = self._slopes

    def kept(self) -> dict[str, dict[str, tuple[int, int]]]:
        """By vector and matrix, how many directions are kept, and of how many."""
        mask = choose(self.leaves["ranks"].detach()).mask
        return {
            label: {
                name: (int(mask[places[t]].sum()), len(mask[places[t]]))
                for name, places in self._places.items()
                if t in places
            }
            for t, label in enumerate(self._stream.labels)
        }

    def besides(self, coefficients: Tensor) -> Tensor:
        """Coefficients (vector, group) with those of matrices set to 0."""
        places = [self._groups.places[name] for name in self._places]
        return coefficients.index_fill(1, torch.tensor(places, dtype=torch.int64), 0.0)

    @torch.no_grad()
    def matrices(self, base: Weights) -> TaskVector:
        """What the merge adds to matrices whose directions are chosen, as a vector of a base."""
        chosen, deltas = self.coefficients(), dict[str, Tensor]()
        for name in self._places:
            deltas[name] = torch.zeros_like(self._base[name])
            self._add(name, deltas[name], chosen[:, self._groups.of(name)])
        return TaskVector.from_tensors({name: delta.cpu() for name, delta in deltas.items()}, base)

    def _add(self, name: str, into: Tensor, factors: Tensor) -> None:
        if name not in self._places:
            super()._add(name, into, factors)
            return
        for place, delta in self._stream.deltas(name, None):
            mask = choose(self.leaves["ranks"].detach()[self._places[name][place]]).mask
            factor = factors[place, 0].item()
            if mask.mean() > 0.5:  # fewer directions to take away than to add; none if all are kept
                into.add_(delta, alpha=factor)
                factor, mask = -factor, 1 - mask
            if mask.any():
                add_ranks(into, self._file.read(name, place, into.device), factor, mask)

    @torch.no_grad()
    def _along(self, name: str, gradient: Tensor) -> Tensor:
        if name not in self._places:
            return super()._along(name, gradient)
        logits = self.leaves["ranks"].detach()
        factors = self.coefficients().detach()[:, self._groups.of(name)]
        sums = torch.zeros_like(factors)
        for place, where in self._places[name].items():
            along = along_ranks(self._file.read(name, place, gradient.device), gradient).cpu().double()
            choice = choose(logits[where])
            sums[place] = (choice.mask * along).sum()
            self._slopes[where] = factors[place] * along * choice.slope
        return sums

    def _decomposed(self, name: str) -> Iterator[tuple[int, Ranks]]:
        for place, delta in self._stream.deltas(name, None):
            if not bool(delta.isfinite().all()):
                raise NonFinite(
                    f"vector {self._stream.labels[place]!r}: {name!r} holds NaN or infinity, so it has no "
                    "singular directions; extract or train it again"
                )
            ranks = Ranks(*svd(delta))
            self._file.write(name, place, ranks)
            yield place, ranks


class _File:
    """Singular directions on disk, those of one matrix of one vector behind those of another."""

    def __init__(self, folder: Path) -> None:
        self._path, self._held = folder / "ranks", dict[tuple[str, int], _Held]()
        self._path.touch()

    def write(self, name: str, place: int, ranks: Ranks) -> None:
        parts = [part.contiguous().cpu() for part in ranks]
        shapes, dtype = [part.shape for part in parts], parts[0].numpy().dtype
        self._held[name, place] = _Held(self._path.stat().st_size, shapes, dtype)
        with self._path.open("ab") as file:
            for part in parts:
                part.numpy().tofile(file)

    def read(self, name: str, place: int, device: torch.device) -> Ranks:
        offset, shapes, dtype = self._held[name, place]
        counts = [shape.numel() for shape in shapes]
        values = torch.from_numpy(np.fromfile(self._path, dtype, sum(counts), offset=offset)).to(device)
        return Ranks(
            *(part.view(shape) for part, shape in zip(torch.split(values, counts), shapes, strict=True))
        )


class _Held(NamedTuple):
    """Where they begin, in bytes, and what they are."""

    offset: int
    shapes: list[torch.Size]
    dtype: np.dtype[np.float32] | np.dtype[np.float64]
