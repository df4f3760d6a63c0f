"""Weights seen in another vocabulary: rows permuted, dropped and filled in, read when asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import xxhash

from taskvec.later import torch
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.dtypes import compute_code, compute_dtype, raw_bytes, size_of
from taskvec.weights.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Alignment:
    """Where the entries of a vocabulary are found in each of several models, the base first.

    Attributes:
        places: int64 (model, entry): the row of a model that becomes an entry of its view, -1 for none.
        axes: the axis of each tensor along which the tokens lie.
        like: the model whose config and tokenizer files hold for the vocabulary.
        donors: like ``places``, the rows that fill an entry of a model that has none; by default its places.
        based: whether a donor that is the base is the only one; else all weigh the same.
    """

    models: tuple[Weights, ...]
    places: "Tensor"
    axes: Mapping[str, int]
    like: Weights
    donors: "Tensor | None" = None
    based: bool = True

    @cached_property
    def digest(self) -> str:
        """Of all that decides which rows a view has."""
        tables = torch.stack([self.places, self._donors])
        return f"{self.based} {xxhash.xxh3_128_hexdigest(raw_bytes(tables))}"

    @property
    def _donors(self) -> "Tensor":
        return self.places if self.donors is None else self.donors

    def sources(self, name: str, number: int, entries: slice) -> "Tensor":
        """The row of each model that some entries of a model's view are the mean of; -1 for none."""
        held = torch.tensor([name in model for model in self.models])
        own, donors = self.places[number, entries], self._donors[:, entries].clone()
        donors[~held] = -1
        if self.based:
            donors[1:, donors[0] >= 0] = -1
        sources = donors.masked_fill(own >= 0, -1)
        sources[number] = torch.where(own >= 0, own, sources[number])
        return sources


class Realigned(Weights):
    """One model of an alignment, seen in the vocabulary of all.

    An entry that the model lacks is the mean of its donors, taken in float32 (float64 for float64 models),
    or zero without any.
    """

    def __init__(self, alignment: Alignment, number: int) -> None:
        self._alignment, self._number = alignment, number
        self._model = model = alignment.models[number]
        super().__init__(
            model.ref,
            {
                name: _resized(model.spec(name), alignment.axes.get(name), alignment.places.shape[1])
                for name in model
            },
            ("vocabulary", number, alignment.digest, *(model.identity for model in alignment.models)),
            parts=alignment.models,
            tied=model.tied,
            folder=alignment.like.folder,
            metadata=model.metadata,
        )

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The model itself, where no tokens lie along an axis; else every model that has the tensor."""
        return super().made_of(name) if name in self._alignment.axes else [(self._model, name)]

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
        return 2 * size_of(compute_code(spec.code)) * self.block_size(name, spec.shape)

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        axis = self._alignment.axes.get(name)
        if axis is None:
            return self._model.read(name, rows)
        if not self.in_rows(name):
            return rows_of(self._joined(name, slice(None), axis, None), rows)
        if axis > 0:
            return self._joined(name, slice(None), axis, rows)
        return self._joined(name, rows or slice(None), 0, None)

    def _joined(self, name: str, entries: slice, axis: int, rows: slice | None) -> "Tensor":
        """Some entries along ``axis``; ``rows`` of the first, if another."""
        sources = self._alignment.sources(name, self._number, entries)
        if (sources[self._number] >= 0).all():
            return take_entries(self._model, name, sources[self._number], axis, rows)
        dtype, givers = self._specs[name].dtype, sources >= 0
        if dtype.is_floating_point:
            wide = compute_dtype(dtype)
        else:
            wide, givers = dtype, givers & (givers.cumsum(0) == 1)  # of whole numbers, the first model's
        parts = [
            (where.nonzero()[:, 0], take_entries(model, name, place[where], axis, rows).to(wide))
            for model, place, where in zip(self._alignment.models, sources, givers, strict=True)
            if where.any()
        ]
        return _mean(parts, self._shape(name, sources.shape[1], axis, rows), axis, wide).to(dtype)

    def _shape(self, name: str, entries: int, axis: int, rows: slice | None) -> list[int]:
        """Of some entries along ``axis``, and of ``rows`` along the first axis, if that is another."""
        shape = list(self._specs[name].shape)
        if rows is not None:
            shape[0] = len(range(*rows.indices(shape[0])))
        shape[axis] = entries
        return shape


def _mean(
    parts: "Sequence[tuple[Tensor, Tensor]]", shape: Sequence[int], axis: int, dtype: "torch.dtype"
) -> "Tensor":
    """The mean of parts that hold some of the entries along ``axis``; zero where none does."""
    total, counts = torch.zeros(tuple(shape), dtype=dtype), torch.zeros(shape[axis], dtype=torch.int64)
    for where, _ in parts:
        counts[where] += 1
    if dtype.is_floating_point:
        total.index_fill_(axis, counts.nonzero()[:, 0], -0.0)  # -0 + x is x for every x, -0 included
    for where, part in parts:
        total.index_add_(axis, where, part)
    if (counts > 1).any():
        total /= counts.clamp(min=1).reshape([-1 if place == axis else 1 for place in range(total.ndim)])
    return total


class Padded(Weights):
    """A model with more rows behind those of its tokens, each their mean.

    Args:
        axes: the axis of each tensor along which the tokens lie.
        size: entries along these axes, with the rows behind.
    """

    def __init__(self, model: Weights, axes: Mapping[str, int], size: int) -> None:
        self._model, self._axes, self._means = model, axes, dict[str, "Tensor"]()
        super().__init__(
            model.ref,
            {name: _resized(model.spec(name), axes.get(name), size) for name in model},
            ("padded", size, tuple(axes.items()), model.identity),
            parts=[model],
            tied=model.tied,
        )

    def in_rows(self, name: str) -> bool:
        """Whether rows can be read by themselves."""
        return super().in_rows(name) and (name not in self._axes or len(self._specs[name].shape) <= 2)

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        axis = self._axes.get(name)
        if axis is None or self._specs[name] == self._model.spec(name):
            return self._model.read(name, rows)
        if axis > 0 or not self.in_rows(name):
            whole = self._padded(name, self._model.read(name), axis, self._specs[name].shape[axis])
            return rows_of(whole, rows)
        start, stop, _ = (rows or slice(None)).indices(self._specs[name].shape[0])
        held = self._model.spec(name).shape[0]
        if start >= held:
            return self._mean(name, 0).expand([stop - start, *self._specs[name].shape[1:]])
        return self._padded(name, self._model.read(name, slice(start, min(stop, held))), 0, stop - start)

    def _padded(self, name: str, tensor: "Tensor", axis: int, size: int) -> "Tensor":
        shape = list(tensor.shape)
        shape[axis] = size - shape[axis]
        return torch.cat([tensor, self._mean(name, axis).expand(shape)], axis) if shape[axis] else tensor

    def _mean(self, name: str, axis: int) -> "Tensor":
        """Of all entries; one read of the tensor, once."""
        if name not in self._means:
            blocks = self._model.row_blocks(name) if axis == 0 and self.in_rows(name) else [None]
            held, dtype = self._model.spec(name).shape[axis], self._specs[name].dtype
            sums = [self._model.read(name, block).double().sum(axis, keepdim=True) for block in blocks]
            self._means[name] = (torch.cat(sums, axis).sum(axis, keepdim=True) / held).to(dtype)
        return self._means[name]


def _resized(spec: TensorSpec, axis: int | None, size: int) -> TensorSpec:
    return TensorSpec(tuple(size if place == axis else n for place, n in enumerate(spec.shape)), spec.code)


def take_entries(
    weights: Weights, name: str, index: "Tensor", axis: int, rows: slice | None = None
) -> "Tensor":
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
