"""Files of ``torch.save``, loaded without executing anything they hold."""

import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from taskvec.errors import CorruptFile, UnsafeFile
from taskvec.reading import check_regular, printable


def load_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, mapped into memory where the format allows.

    Raises: InputError if there is no such file; UnsafeFile if loading would run code; CorruptFile if it is
        damaged, or not as torch writes it.
    """
    check_regular(path)
    # Only the zip format, torch's own since 1.6, can be mapped.
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _check_archive(path)
    try:
        with warnings.catch_warnings():
            # A pickle of an unusual protocol draws a remark from torch; what counts is whether it loads.
            warnings.simplefilter("ignore")
            if mapped:
                return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
            with _Reader(io.FileIO(path)) as file:
                return torch.load(file, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        text = str(error)
        if "truncated" in text or "invalid load key" in text:
            raise CorruptFile(f"{path}: damaged or no state dict; download or save it again") from None
        raise UnsafeFile(f"{path}: {_culprit(text)}; save its state_dict() as safetensors") from None
    except Exception as error:  # damaged pickles fail in every way there is
        what = printable(" ".join(str(error).split()[:12])) or type(error).__name__
        raise CorruptFile(f"{path}: damaged or no state dict ({what}); download or save it again") from None


class _Reader(io.BufferedReader):
    """A file of which no more is asked for than it has, as room is made for all that is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, all that are left by default."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


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
    odd = next((m for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1), None)
    if odd is not None:
        what = f"{odd.filename!r} is compressed"
    elif len({member.filename for member in members}) < len(members):
        what = "two parts have the same name"
    elif sum(member.file_size for member in members) > path.stat().st_size:
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
