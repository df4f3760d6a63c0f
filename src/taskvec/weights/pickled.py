"""``torch.save`` state dicts, read without executing anything they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from taskvec.errors import CorruptFile, InputError
from taskvec.pickles import load_pickle
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.stored import file_identity

_SPREAD = 4
"""How many times the bytes of its file a state dict may have: tensors may be views of shared memory."""

_SMALL = 1 << 20
"""Bytes that a state dict may have in any case."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that ``torch.save`` wrote."""


class PickledWeights(MemoryWeights):
    """A state dict that ``torch.save`` wrote, mapped into memory where the format allows.

    It may lie under the key ``state_dict`` of a trainer's checkpoint, such as Lightning's; what lies beside
    it is not used.

    Raises: UnsafeFile if loading would run code; CorruptFile if it cannot be read; InputError if it
        holds other things than tensors.
    """

    frozen = True

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        tensors = _state_dict(path, load_pickle(path))
        super().__init__(
            ref or str(path), tensors, file_identity(path), folder=folder, files=(path.resolve(),)
        )
        self._check_held(path)

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = {}

    def _check_held(self, path: Path) -> None:
        """Refuse tensors whose entries are mostly the same few: they would be written one by one."""
        size, claimed = path.stat().st_size, self.nbytes
        if claimed > max(_SMALL, _SPREAD * size):
            name, spec = max(self._specs.items(), key=lambda item: item[1].nbytes)
            raise CorruptFile(
                f"{path}: tensors of {claimed / 1e6:,.1f} MB ({name!r}: {spec.shape}) in a file of "
                f"{size / 1e6:,.1f} MB, expected {_SPREAD} times as many at most; save contiguous tensors"
            )


def _state_dict(path: Path, loaded: Any) -> Mapping[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds {type(loaded).__name__}, expected a state dict: names and tensors")
    return dict(loaded)
