"""A folder on this machine that stands for one elsewhere: files get their content when they are first opened.

Those of weights never do: tensors are read from where they are.
"""

import os
import shutil
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from threading import RLock
from typing import Any

from taskvec.errors import InputError
from taskvec.reading import awaited, inside, mirrored
from taskvec.weights.remote.file import RemoteFile
from taskvec.weights.remote.place import WEIGHTS, Place

_LARGEST = 1 << 26
"""Bytes of the largest file beside weights that is fetched: tokenizers have half of that at most."""

_LEFT = 1 << 30
"""The size that a larger one seems to have, at least: then it stays behind, and a note says so."""

_PIECE = 1 << 20
_mirrors: "weakref.WeakValueDictionary[str, Mirror]" = weakref.WeakValueDictionary()
_lock = RLock()


class Mirror:
    """The folder that stands for a place; it is removed once nobody has a file of it open.

    Attributes:
        folder: on this machine.
        files: path there -> the file elsewhere.
        named: the path of the file that the user named, or the folder.
    """

    def __init__(self, place: Place) -> None:
        top = Path(mkdtemp(prefix="taskvec-")).resolve()
        weakref.finalize(self, _remove, top, os.getpid())
        self.folder = top / (_plain_name(place.said) or "model")
        self.folder.mkdir()
        self.files: dict[str, RemoteFile] = {}
        self.named = self.folder if place.chosen is None else self.folder / place.chosen
        mirrored[str(self.folder)] = place.said
        for name, file in place.files.items():
            with suppress(InputError, OSError):  # of a name that no file here can have: left where it is
                self._stand_in(name, file)
        _mirrors[str(self.folder)] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _mirrors.setdefault(str(self.folder), self)

    def _stand_in(self, name: str, file: RemoteFile) -> None:
        path = inside(self.folder, name, file.said)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 0 if path.name.endswith(WEIGHTS) else file.size
        with path.open("xb") as stand_in:
            stand_in.truncate(size if size <= _LARGEST else max(size, _LEFT))
        self.files[str(path)] = file
        awaited[str(path)] = partial(_fetch, path, file)


def mirror_of(path: Path) -> Mirror | None:
    """The mirror that a path lies in."""
    if not _mirrors:
        return None
    return next((mirror for home in path.parents if (mirror := _mirrors.get(str(home)))), None)


def file_behind(path: Path) -> RemoteFile | None:
    """The file elsewhere that a path stands for."""
    mirror = mirror_of(path)
    return None if mirror is None else mirror.files.get(str(path))


def _fetch(path: Path, file: RemoteFile) -> None:
    """Give a file its content.

    Raises: InputError for one of weights that are not safetensors, or one that is too large.
    """
    if path.name.endswith(WEIGHTS):
        raise InputError(
            f"{file.said}: only safetensors files are read in place; download it first, and name the copy"
        )
    if file.size > _LARGEST:
        raise InputError(f"{file.said}: {file.size / 1e6:,.0f} MB, too much for a file beside weights")
    with _lock:
        if str(path) not in awaited:  # another thread was first
            return
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as copy:
            for start in range(0, file.size, _PIECE):
                copy.write(file.read(_PIECE, start))
        part.replace(path)
        awaited.pop(str(path), None)


def _plain_name(said: str) -> str:
    """The last part of a URL, where it can be the name of a folder."""
    name = said.rstrip("/").rpartition("/")[2].partition("@")[0]
    return (
        name if name.isprintable() and name.isascii() and len(name) < 100 and name not in (".", "..") else ""
    )


def _remove(top: Path, process: int) -> None:
    if os.getpid() != process:  # a fork's copy: the folder is not its own
        return
    for path in [path for path in (*awaited, *mirrored) if Path(path).is_relative_to(top)]:
        awaited.pop(path, None)
        mirrored.pop(path, None)
    shutil.rmtree(top, ignore_errors=True)
