"""Safetensors files elsewhere: the header is fetched on opening, tensors and rows when they are asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from taskvec.weights.lazy import Weights
from taskvec.weights.remote.mirror import Mirror
from taskvec.weights.stored import read_array, read_header, read_rows

if TYPE_CHECKING:
    from torch import Tensor


class RemoteWeights(Weights):
    """One safetensors file elsewhere.

    Args:
        path: what stands for it in ``mirror``.
        ref: what the user called it.

    Raises: as ``StoredWeights``; InputError if it cannot be had.
    """

    def __init__(self, mirror: Mirror, path: Path, *, ref: str | None, folder: Path | None) -> None:
        self._mirror, self._file = mirror, mirror.files[str(path)]
        header = read_header(self._file.said, self._file.size, self._file.read)
        self._places = header.places
        super().__init__(
            ref or self._file.said,
            header.specs,
            self._file.identity,
            tied=header.tied,
            folder=folder,
            metadata=header.metadata,
            files=(path,),
        )

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return read_rows(self, name, self._file.fill, self._places[name], rows)

    def _read_array(self, name: str, rows: slice | None) -> NDArray[Any]:
        return read_array(self, name, self._file.fill, self._places[name], rows)
