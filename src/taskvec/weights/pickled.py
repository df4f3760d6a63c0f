"""``torch.save`` state dicts, read without executing anything they hold."""

from pathlib import Path

from taskvec.errors import CorruptFile
from taskvec.pickles import load_pickle
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.lazy import Weights
from taskvec.weights.nested import state_dict_in
from taskvec.weights.stored import file_identity

_SPREAD = 4
"""How many times the bytes of its file a state dict may have: tensors may be views of shared memory."""

_SMALL = 1 << 20
"""Bytes that a state dict may have in any case."""


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
        identity = (*file_identity(path), part)
        super().__init__(ref or str(path), tensors, identity, folder=folder, files=(path.resolve(),))
        check_held(path, self)

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = {}


def check_held(path: Path, weights: Weights) -> None:
    """Refuse tensors whose entries are mostly the same few: they would be written one by one.

    Raises: CorruptFile.
    """
    size, claimed = path.stat().st_size, weights.nbytes
    if claimed > max(_SMALL, _SPREAD * size):
        name = max(weights, key=lambda name: weights.spec(name).nbytes)
        raise CorruptFile(
            f"{path}: tensors of {claimed / 1e6:,.1f} MB ({name!r}: {weights.spec(name).shape}) in a file of "
            f"{size / 1e6:,.1f} MB, expected {_SPREAD} times as many at most; save contiguous tensors"
        )
