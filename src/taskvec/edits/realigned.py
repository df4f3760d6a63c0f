"""Weights seen in another vocabulary: rows permuted, dropped and filled in, read when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import xxhash
from torch import Tensor

from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.dtypes import compute_dtype, raw_bytes
from taskvec.weights.lazy import Lazy


@dataclass(frozen=True)
class Alignment:
    """Where the entries of a vocabulary are found in each of several models, the base first.

    Attributes:
        places: int64 (model, entry): the row of a model that becomes an entry of the view, -1 for none.
        axes: the axis of each tensor along which the tokens lie.
        like: the model whose config and tokenizer files hold for the vocabulary.
    """

    models: tuple[Weights, ...]
    places: Tensor
    axes: Mapping[str, int]
    like: Weights

    @cached_property
    def digest(self) -> str:
        """Of the places."""
        return xxhash.xxh3_128_hexdigest(raw_bytes(self.places))


class Realigned(Weights):
    """One model of an alignment, seen in the vocabulary of all.

    An entry that the model lacks is the base's; one that the base lacks too is the mean of the models that
    have it, taken in float32 (float64 for float64 models).
    """

    def __init__(self, alignment: Alignment, number: int) -> None:
        self._alignment, self._number = alignment, number
        self._model = model = alignment.models[number]
        super().__init__(
            model.ref,
            {name: self._resized(name, model.spec(name)) for name in model},
            ("vocabulary", number, alignment.digest, *(model.identity for model in alignment.models)),
            parts=alignment.models,
            tied=model.tied,
            folder=alignment.like.folder,
            metadata=model.metadata,
        )

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The model itself, where no tokens lie along an axis; else every model that has the tensor."""
        return super().made_of(name) if name in self._alignment.axes else [(self._model, name)]

    def _resized(self, name: str, spec: TensorSpec) -> TensorSpec:
        axis = self._alignment.axes.get(name)
        shape = (
            self._alignment.places.shape[1] if place == axis else size
            for place, size in enumerate(spec.shape)
        )
        return TensorSpec(tuple(shape), spec.dtype)

    def in_rows(self, name: str) -> bool:
        """Whether rows can be read by themselves: with more than two axes, a row is no entry of the first."""
        return super().in_rows(name) and (
            name not in self._alignment.axes or len(self._specs[name].shape) <= 2
        )

    def own_bytes(self, name: str) -> int:
        """Bytes of the sum over models, and of what is added to it."""
        if name not in self._alignment.axes:
            return 0
        spec = self.spec(name)
        return 2 * compute_dtype(spec.dtype).itemsize * self.block_size(name, spec.shape)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        axis = self._alignment.axes.get(name)
        if axis is None:
            return self._model.read(name, rows)
        if not self.in_rows(name):
            return rows_of(self._joined(name, self._alignment.places, axis, None), rows)
        if axis > 0:
            return self._joined(name, self._alignment.places, axis, rows)
        return self._joined(name, self._alignment.places[:, rows or slice(None)], 0, None)

    def _joined(self, name: str, places: Tensor, axis: int, rows: slice | None) -> Tensor:
        """The entries at ``places`` (model, entry) along ``axis``; ``rows`` of the first, if another."""
        givers = self._givers(name, places)
        if givers[self._number].all():
            return take_entries(self._model, name, places[self._number], axis, rows)
        dtype = self._specs[name].dtype
        if dtype.is_floating_point:
            wide = compute_dtype(dtype)
        else:
            wide, givers = dtype, givers & (givers.cumsum(0) == 1)  # of whole numbers, the first model's
        parts = [
            (where.nonzero()[:, 0], take_entries(model, name, place[where], axis, rows).to(wide))
            for model, place, where in zip(self._alignment.models, places, givers, strict=True)
            if where.any()
        ]
        shape = list(self._specs[name].shape if not parts else parts[0][1].shape)
        shape[axis] = places.shape[1]
        total = torch.zeros(shape, dtype=wide)
        if dtype.is_floating_point:
            total.neg_()  # -0 + x is x for every x, -0 included
        for where, part in parts:
            total.index_add_(axis, where, part)
        counts = givers.sum(0).clamp(min=1)
        if (counts > 1).any():
            total /= counts.reshape([-1 if place == axis else 1 for place in range(total.ndim)])
        return total.to(dtype)

    def _givers(self, name: str, places: Tensor) -> Tensor:
        """Which models an entry is the mean of, bool (model, entry): this one, else the base, else all."""
        held = torch.tensor([name in model for model in self._alignment.models])
        can = (places >= 0) & held[:, None]
        here, base = can[self._number], can[0]
        alone = torch.zeros_like(can)
        alone[0] = base & ~here
        alone[self._number] |= here
        return torch.where(here | base, alone, can)


def take_entries(weights: Weights, name: str, index: Tensor, axis: int, rows: slice | None = None) -> Tensor:
    """The entries ``index`` (int64, none negative) of a tensor along ``axis``.

    Cost: along the first axis of a matrix, one read for each run of consecutive rows.
    """
    if axis > 0:
        return weights.read(name, rows).index_select(axis, index)
    if not weights.in_rows(name) or len(weights.spec(name).shape) > 2:
        return weights.read(name)[index]
    ends = (index.diff() != 1).nonzero()[:, 0] + 1
    runs = index.tensor_split(ends)
    parts = [weights.read(name, slice(int(run[0]), int(run[-1]) + 1)) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
