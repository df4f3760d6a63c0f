"""Files in buckets, and wherever else fsspec reads: listed, and read by ranges."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from taskvec.errors import InputError
from taskvec.reading import printable, shortened
from taskvec.urls import open_filesystem, said
from taskvec.weights.remote.file import Broken, RemoteFile, RemoteIdentity
from taskvec.weights.remote.place import Place

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_FILES = 5000
_DEPTH = 2
_LARGEST = 1 << 26
"""Bytes of an answer, which is held in memory beside the tensor that it goes into."""

_TELLING = (
    *("ETag", "etag", "md5Hash", "content_md5", "crc32c", "checksum", "generation", "VersionId"),
    *("LastModified", "last_modified", "mtime", "modified", "updated", "created"),
)
"""What stores say of a file that is another one once it was written to."""

_LEFT = re.compile(r"\..*|__pycache__|runs|logs|wandb|checkpoint-\d+|global_step\d+", re.IGNORECASE)
"""Folders in that of a model that are no part of it."""

_ADDRESS = re.compile(r"\w[\w+.-]*://[^\s\"']+")


class Store:
    """The file system of a URL, opened anew in every process, as forked ones must not share sockets."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: tuple[int, AbstractFileSystem] | None = None

    def open(self) -> "AbstractFileSystem":
        """The file system: one for all threads if it is made for that, else one for each."""
        if self._held is not None and self._held[0] == os.getpid():
            return self._held[1]
        fs, _ = open_filesystem(self._url)
        if fs.async_impl:
            self._held = os.getpid(), fs
        return fs

    def __getstate__(self) -> dict[str, Any]:
        return {"_url": self._url, "_held": None}


class StoredFile(RemoteFile):
    """A file in a store."""

    def __init__(self, store: Store, path: str, said: str, size: int | None = None) -> None:
        super().__init__(said)
        self._store, self._path, self._listed = store, path, size
        self._state: dict[str, str] | None = None

    @property
    def size(self) -> int:
        """Bytes of the file, as the store says."""
        return self._listed if self._listed is not None else int(self._known()["size"])

    @property
    def identity(self) -> RemoteIdentity:
        """Its URL, and what the store says of its state."""
        return RemoteIdentity(self.said, self.size, repr(sorted(self._known().items())))

    def _known(self) -> dict[str, str]:
        if self._state is None:
            state = self._look()
            if self._listed is not None and str(self._listed) != state["size"]:
                raise self._changed()
            self._state = state
        return self._state

    def _look(self) -> dict[str, str]:
        """What the store says of the file now."""
        fs = self._store.open()
        try:
            fs.invalidate_cache(self._path)
            info = fs.info(self._path)
        except Exception as error:
            raise InputError(f"{self.said}: {reason_of(error)}") from None
        if not isinstance(info.get("size"), int):
            raise InputError(f"{self.said}: the store does not say how large it is; download it first")
        return {"size": str(info["size"])} | {key: str(info[key]) for key in _TELLING if info.get(key)}

    def _ask(self, buffer: memoryview, place: int) -> int:
        self._known()
        end = place + min(len(buffer), _LARGEST)
        try:
            content = self._store.open().cat_file(self._path, start=place, end=end)
        except Exception as error:  # of any of many packages
            self._check_state(error)
            if isinstance(error, PermissionError):
                raise InputError(f"{self.said}: {reason_of(error)}") from None
            raise Broken(reason_of(error)) from None
        if len(content) > len(buffer):
            raise InputError(f"{self.said}: the store knows no ranges of files; download it first")
        self._check_state()
        buffer[: len(content)] = content
        return len(content)

    def _check_state(self, error: Exception | None = None) -> None:
        """Refuse another state than the first; of a store that failed to read, only what it says for sure."""
        if isinstance(error, FileNotFoundError):
            raise self._changed(": it is gone")
        try:
            now = self._look()
        except InputError:
            if error is None:
                raise
            return
        if now != self._state:
            raise self._changed()


def reason_of(error: Exception) -> str:
    """Why a store did not do as it was asked, in one line without secrets."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    line = next(iter(str(error).strip().splitlines()), "")
    told = _ADDRESS.sub(lambda found: said(found[0]), line)
    return printable(shortened(told)) or type(error).__name__


def find_in_store(url: str) -> Place:
    """A folder, or a file and what lies beside it, in a store.

    Raises: InputError if there is none.
    """
    url = url.partition("#")[0].rstrip("/")
    store = Store(url)
    fs, path = open_filesystem(url)
    path = path.rstrip("/")
    try:
        fs.invalidate_cache(path)
        info = fs.info(path)
    except Exception as error:
        raise InputError(f"{said(url)}: {reason_of(error)}") from None
    if info.get("type") == "directory":
        return Place(said(url), dict(_listed(store, fs, path, said(url))))
    folder, _, name = path.rpartition("/")
    home = said(url).rpartition("/")[0]
    chosen: Mapping[str, RemoteFile] = {name: StoredFile(store, path, said(url))}
    return Place(home, {**dict(_listed(store, fs, folder, home)), **chosen}, name)


def _listed(
    store: Store, fs: "AbstractFileSystem", folder: str, home: str
) -> Iterator[tuple[str, RemoteFile]]:
    """The files of a folder and of those in it, as far as the store lists them."""
    waiting, count = [(folder, 0)], 0
    while waiting:
        place, depth = waiting.pop(0)
        try:
            entries = fs.ls(place, detail=True)
        except Exception:  # a file may be read where its folder may not be listed
            continue
        for entry in entries:
            name = str(entry["name"]).rstrip("/").removeprefix(folder).strip("/")
            if not name or f"{folder}/{name}".rstrip("/") == place:
                continue
            if entry.get("type") == "directory":
                if depth < _DEPTH and not _LEFT.fullmatch(name.rpartition("/")[2]):
                    waiting.append((f"{folder}/{name}", depth + 1))
                continue
            count += 1
            if count > _FILES:
                return
            size = entry.get("size")
            known = size if isinstance(size, int) else None
            yield name, StoredFile(store, str(entry["name"]), f"{home}/{name}", known)
