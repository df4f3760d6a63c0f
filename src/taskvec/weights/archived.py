"""State dicts of ``torch.save``, read without executing anything they hold.

Tensors in archives are read from their place in the file. They are not mapped: a file that is cut short while
it is mapped kills the process, with no error raised.
"""

import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from taskvec.errors import CorruptFile
from taskvec.pickles import Unplaced, load_pickle, load_placed
from taskvec.reading import fill, open_regular
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.dtypes import code_of
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.lazy import Weights
from taskvec.weights.nested import state_dict_in
from taskvec.weights.stored import file_identity, fill_tensor, read_rows

_SPREAD = 4
"""How many times the bytes of its file a state dict may have: tensors may be views of shared memory."""

_SMALL = 1 << 20
"""Bytes that a state dict may have in any case."""


def open_pickled(
    path: Path, *, ref: str | None = None, folder: Path | None = None, part: str | None = None
) -> Weights:
    """A file of ``torch.save``: from its place in the file where that is plain, else from memory."""
    try:
        return ArchivedWeights(path, ref=ref, folder=folder, part=part)
    except Unplaced:
        return PickledWeights(path, ref=ref, folder=folder, part=part)


@dataclass(frozen=True)
class _View:
    """A tensor of an archive: the first byte of its storage that it shows, and how.

    Attributes:
        extent: entries from the first to the last of those that it shows.
        turned: whether what is stored is the conjugate, and whether it is the negative.
    """

    place: int
    stride: tuple[int, ...]
    extent: int
    turned: tuple[bool, bool]


class ArchivedWeights(Weights):
    """A state dict in an archive of ``torch.save``; as ``PickledWeights``.

    Raises: Unplaced for tensors that are no plain views of what is stored.
    """

    def __init__(
        self, path: Path, *, ref: str | None = None, folder: Path | None = None, part: str | None = None
    ) -> None:
        handle = open_regular(path)
        self._close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        loaded, places = load_placed(path)
        tensors = state_dict_in(path, loaded, part)
        views = {name: _view(name, tensor, places) for name, tensor in tensors.items()}
        specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        tied = _tied(specs, views)
        self._views = views
        identity = (file_identity(path), part)
        stored = {name: spec for name, spec in specs.items() if name not in tied}
        super().__init__(
            ref or str(path), stored, identity, tied=tied, folder=folder, files=(path.resolve(),)
        )
        _check_held(path, self)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        spec, view, fill_from = self._specs[name], self._views[name], partial(fill, self._handle)
        if self.in_rows(name):
            made = read_rows(self, name, fill_from, view.place, rows)
        else:
            empty = torch.empty(view.extent, dtype=spec.dtype)
            flat = fill_tensor(self, name, fill_from, view.place, empty)
            made = rows_of(flat.as_strided(spec.shape, view.stride), rows)
        conjugate, negative = view.turned
        made = made.conj().resolve_conj() if conjugate else made
        return -made if negative else made

    def in_rows(self, name: str) -> bool:
        """Whether the entries lie in order and without gaps."""
        spec, view = self.spec(name), self._views[self._stored_name(name)]
        return view.extent == spec.numel and view.stride == _dense(spec.shape)

    @property
    def by_rows(self) -> bool:
        """Whether those of all tensors do."""
        return all(map(self.in_rows, self))

    def own_bytes(self, name: str) -> int:
        """Bytes of a block; of what is turned, or has gaps, with those between."""
        held = self._views[self._stored_name(name)].extent * self.spec(name).itemsize
        return super().own_bytes(name) + (0 if self.in_rows(name) else held)

    def close(self) -> None:
        """Close the file. Tensors read before stay valid."""
        self._close()


def _view(name: object, tensor: Tensor, places: Mapping[int, tuple[int, int]]) -> _View:
    """Where a tensor lies."""
    plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_nested and tensor.layout == torch.strided
    if not plain or not isinstance(name, str) or not name.isprintable() or code_of(tensor.dtype) is None:
        raise Unplaced
    start, size = places.get(tensor.untyped_storage()._cdata, (0, -1))
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    extent = 1 + sum((length - 1) * stride for length, stride in steps) if tensor.numel() else 0
    first, width = int(tensor.storage_offset()), tensor.dtype.itemsize
    if min(tensor.stride(), default=0) < 0 or (first + extent) * width > size:
        raise Unplaced
    return _View(start + first * width, tuple(tensor.stride()), extent, (tensor.is_conj(), tensor.is_neg()))


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor in row-major order."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _tied(specs: Mapping[str, TensorSpec], views: Mapping[str, _View]) -> dict[str, str]:
    """Names of the very same bytes: alias -> the first name."""
    first: dict[tuple[TensorSpec, _View], str] = {}
    names = [name for name in specs if specs[name].numel]
    return {
        name: kept for name in names if (kept := first.setdefault((specs[name], views[name]), name)) != name
    }


class PickledWeights(MemoryWeights):
    """A state dict that ``torch.save`` wrote, mapped into memory where the format allows.

    It may lie in a trainer's checkpoint, such as ``{"model": …, "optimizer": …}``; what lies beside it is not
    used, and ``part`` says which is meant where there are several.

    Raises: UnsafeFile if loading would run code; CorruptFile if it cannot be read; InputError if it
        holds other things than tensors.
    """

    frozen = True

    def __init__(
        self, path: Path, *, ref: str | None = None, folder: Path | None = None, part: str | None = None
    ) -> None:
        tensors = state_dict_in(path, load_pickle(path), part)
        identity = (file_identity(path), part)
        super().__init__(ref or str(path), tensors, identity, folder=folder, files=(path.resolve(),))
        _check_held(path, self)

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = {}


def _check_held(path: Path, weights: Weights) -> None:
    """Refuse tensors whose entries are mostly the same few: they would be written one by one."""
    size, claimed = path.stat().st_size, weights.nbytes
    if claimed > max(_SMALL, _SPREAD * size):
        name = max(weights, key=lambda name: weights.spec(name).nbytes)
        raise CorruptFile(
            f"{path}: tensors of {claimed / 1e6:,.1f} MB ({name!r}: {weights.spec(name).shape}) in a file of "
            f"{size / 1e6:,.1f} MB, expected {_SPREAD} times as many at most; save contiguous tensors"
        )
