"""Tensors put aside on the disk until all of them, and what is to be said of them, are known."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from taskvec.later import torch
from taskvec.reading import fill
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import row_count, row_size, rows_shape
from taskvec.weights.dtypes import raw_bytes
from taskvec.writing import unwritable, write_at

if TYPE_CHECKING:
    from torch import Tensor

_serial = count()


class Spool(Weights):
    """Tensors in a file without a name, written in any order, read like all weights.

    The file lies beside ``target``, on the disk that has to hold the result anyway, and is gone when closed,
    or when the process ends.
    """

    def __init__(self, ref: str, target: Path, files: tuple[Path, ...] = ()) -> None:
        super().__init__(ref, {}, ("spool", next(_serial)), files=files)
        self.target = target
        beside = next(place for place in target.absolute().parents if place.is_dir())
        self._file = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115  # as long-lived as we are
        self._known: dict[str, TensorSpec] = {}
        self._specs = self._known
        self._places: dict[str, int] = {}
        self._end = 0

    def allot(self, name: str, spec: TensorSpec) -> None:
        """Make room for a tensor; it is zero until it is written.

        Raises: TaskvecError if there is none.
        """
        self._known[name], self._places[name] = spec, self._end
        self._end += spec.nbytes
        with self._failing_in_words():
            self._file.truncate(self._end)

    def put(self, name: str, tensor: "Tensor", first: int = 0) -> None:
        """Write a tensor that there is room for, or its rows from ``first`` on.

        Raises: TaskvecError if the disk is full.
        """
        with self._failing_in_words():
            write_at(self._file.fileno(), raw_bytes(tensor), self._place(name, first))

    def add(self, name: str, tensor: "Tensor") -> None:
        """Make room for a tensor and write it."""
        self.allot(name, TensorSpec(tuple(tensor.shape), tensor.dtype))
        self.put(name, tensor)

    def close(self) -> None:
        """Let go of the file, and with it of all that was written."""
        self._file.close()

    @contextmanager
    def _failing_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(self.target, error) from error

    def _place(self, name: str, first: int) -> int:
        spec = self._known[name]
        return self._places[name] + (first and first * row_size(spec.shape) * spec.itemsize)

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        spec = self._known[name]
        first = 0 if rows is None else rows.indices(row_count(spec.shape))[0]
        tensor = torch.empty(rows_shape(spec.shape, rows), dtype=spec.dtype)
        fill(self._file.fileno(), raw_bytes(tensor), self._place(name, first))
        return tensor
