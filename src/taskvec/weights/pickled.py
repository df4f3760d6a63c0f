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
from taskvec.reading import check_regular, printable
from taskvec.weights.source import MemoryWeights
from taskvec.weights.stored import file_identity

SPREAD = 4
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
        tensors = _state_dict(path, _load(path))
        super().__init__(
            ref or str(path), tensors, file_identity(path), folder=folder, files=(path.resolve(),)
        )
        self._check_held(path)

    def close(self) -> None:
        """Forget the tensors."""
        self._tensors = {}

    def _check_held(self, path: Path) -> None:
        """Refuse tensors whose entries are mostly the same few: they would be written one by one."""
        size, claimed = path.stat().st_size, sum(spec.nbytes for spec in self._specs.values())
        if claimed > max(_SMALL, SPREAD * size):
            name, spec = max(self._specs.items(), key=lambda item: item[1].nbytes)
            raise CorruptFile(
                f"{path}: tensors of {claimed / 1e6:,.1f} MB ({name!r}: {spec.shape}) in a file of "
                f"{size / 1e6:,.1f} MB, expected {SPREAD} times as many at most; save contiguous tensors"
            )


def _load(path: Path) -> Any:
    check_regular(path)
    # Only the zip format, torch's own since 1.6, can be mapped.
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            # A pickle of an unusual protocol draws a remark from torch; what counts is whether it loads.
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu", mmap=mapped)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "truncated" in text or "invalid load key" in text:
            raise CorruptFile(f"{path}: damaged or no state dict; download or save it again") from None
        raise UnsafeFile(f"{path}: {_culprit(text)}; save its state_dict() as safetensors") from None
    except Exception as error:  # damaged pickles fail in every way there is
        what = printable(" ".join(str(error).split()[:12])) or type(error).__name__
        raise CorruptFile(f"{path}: damaged or no state dict ({what}); download or save it again") from None


def _check_archive(path: Path) -> None:
    """Refuse what torch never writes and would misread: compressed members, two of one name.

    Raises: CorruptFile.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # odd archives fail in every way there is
        raise CorruptFile(
            f"{path}: damaged or no state dict ({printable(str(error))}); download or save it again"
        ) from None
    odd = next((one for one in members if one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1), None)
    if odd is not None:
        what = f"{odd.filename!r} is compressed"
    elif len({one.filename for one in members}) < len(members):
        what = "two parts have the same name"
    elif sum(one.file_size for one in members) > path.stat().st_size:
        what = "its parts have more bytes than it has itself"
    else:
        return
    raise CorruptFile(f"{path}: no archive as torch writes them, {what}; save it again with torch.save")


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
