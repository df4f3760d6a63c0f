"""``torch.save`` state dicts, read without executing anything they hold."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import CorruptFile, InputError, UnsafeFile
from taskvec.weights.source import MemoryWeights
from taskvec.weights.stored import file_identity


class PickledWeights(MemoryWeights):
    """A state dict in a ``.bin``, ``.pt`` or ``.pth`` file, mapped into memory where the format allows.

    Raises: UnsafeFile if loading would run code; CorruptFile if it cannot be read; InputError if it
        holds other things than tensors.
    """

    frozen = True

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        tensors = _state_dict(path, _load(path))
        super().__init__(
            ref or str(path), tensors, file_identity(path), folder=folder, files=(path.resolve(),)
        )

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = {}


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # A pickle of an unusual protocol draws a remark from torch; what counts is whether it loads.
            warnings.simplefilter("ignore")
            # Only the zip format, torch's own since 1.6, can be mapped.
            return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        text = str(error)
        if "truncated" in text or "invalid load key" in text:
            raise CorruptFile(f"{path}: damaged or no state dict; download or save it again") from None
        raise UnsafeFile(f"{path}: {_culprit(text)}; save its state_dict() as safetensors") from None
    except Exception as error:  # damaged pickles fail in every way there is
        what = " ".join(str(error).split()[:12]) or type(error).__name__
        raise CorruptFile(f"{path}: damaged or no state dict ({what}); download or save it again") from None


def _culprit(text: str) -> str:
    """What the safe unpickler refused, from its own long message."""
    words = text.replace(",", " ").split()
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    what = f" ({named[0]})" if named else ""
    return f"holds more than tensors{what}, and loading it could run code"


def _state_dict(path: Path, loaded: Any) -> Mapping[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds {type(loaded).__name__}, expected a state dict: names and tensors")
    return dict(loaded)
