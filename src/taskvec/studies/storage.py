"""Files of a run under a URL that every worker sees: a bucket, a shared disk."""

import errno
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import TypeVar

import xxhash

from taskvec.errors import CorruptFile, DiskFull, InputError, TaskvecError
from taskvec.reading import parse_json, shown
from taskvec.studies.files import LATE, PROBE, Files, Here
from taskvec.urls import is_url, open_filesystem, protocol_of, said
from taskvec.writing import replacing

T = TypeVar("T")

KEPT = ("vectors", "logs", "statistics", "inspected", "outputs", "untrained")
"""The folders of a run whose files every worker may need; what is half done is none of them."""

CHECK = ".check"
"""The ending of what lies beside every file: how many bytes it has, and their digest."""

_ATOMIC = frozenset({"abfs", "abfss", "az", "gcs", "gs", "oci", "oss", "s3", "s3a"})
"""Protocols of stores that show an object when all of it is there. Elsewhere files are renamed into place."""

_PAUSES = (0.5, 1.0, 2.0)
"""Seconds before a request is tried again; the packages of stores do so by themselves."""

_KEPT = "; what is finished is kept: run it again to go on"

_FULL = (errno.ENOSPC, errno.EDQUOT)

_BLOCK = 1 << 22


class Stored(Files):
    """Files under a URL, and a folder here that holds those that were made or used here.

    A file is uploaded whole or not at all, and is known by its size and digest, which lie beside it; what is
    brought back is checked by them. Requests that fail are tried again, three times.

    Args:
        folder: of this machine; the run folder, or a scratch folder of a worker.
        url: a place that all processes of the run see, or a path of a shared disk.

    Raises: InputError for a URL that makes no sense.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, checked_storage(url)
        self.storage = self.url
        self._fs, root = open_filesystem(self.url)
        self._root = root.rstrip("/")
        self._direct = protocol_of(self.url) in _ATOMIC
        self._pauses = (None,) if self._direct else (*_PAUSES, None)
        self._known: dict[str, tuple[int, int]] = {}
        """Size and time of the files here that lie there too."""

    def fetch(self, path: Path) -> bool:
        """Whether a file is there; it is brought here first. Raises: CorruptFile, TaskvecError."""
        if path.exists() or not path.is_relative_to(self.folder):
            return path.exists()
        return self._brought(path.relative_to(self.folder).as_posix())

    def bring(self, *names: str) -> None:
        """Bring here what others have made. Raises: CorruptFile, TaskvecError."""
        for name in self._listed(*names):
            if not (self.folder / name).exists():
                self._brought(name)

    def publish(self) -> None:
        """Upload what was made here since the last time. Raises: TaskvecError."""
        for path in self._made():
            name, state = path.relative_to(self.folder).as_posix(), _state(path)
            if self._known.get(name) != state:
                self._upload(path, name)
                self._known[name] = state

    def probe(self, name: str) -> None:
        """Leave a mark. Raises: InputError where nothing can be written."""
        try:
            self._put(f"{PROBE}{name}", lambda place: self._fs.pipe_file(place, b"1"))
        except TaskvecError as error:
            what = str(error).removesuffix(_KEPT).replace(f"/{PROBE}{name}: could not", ": nothing can", 1)
            raise InputError(f"{what}; expected a place that can be written to") from None

    def probes(self) -> set[str]:
        """The marks that are seen. Raises: TaskvecError."""
        names = (place.rpartition("/")[2] for place in self._looked(self._fs.ls, "", detail=False))
        return {name.removeprefix(PROBE) for name in names if name.startswith(PROBE)}

    def unprobe(self, name: str) -> None:
        """Remove a mark; one that cannot be removed does no harm."""
        with suppress(Exception):
            self._fs.rm_file(f"{self._root}/{PROBE}{name}")

    def _made(self) -> Iterator[Path]:
        for folder in map(self.folder.joinpath, KEPT):
            for path in sorted(folder.rglob("*")):
                hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
                if not hidden and not path.is_symlink() and path.is_file():
                    yield path

    def _upload(self, path: Path, name: str) -> None:
        check = json.dumps({"size": path.stat().st_size, "digest": _digest(path)}).encode()
        self._put(name, lambda place: self._fs.put_file(str(path), place))
        self._put(name + CHECK, lambda place: self._fs.pipe_file(place, check))

    def _put(self, name: str, write: Callable[[str], object]) -> None:
        """Write a file there: the whole of it, or nothing that has its name."""
        place = f"{self._root}/{name}"
        parent, _, last = place.rpartition("/")
        partial = place if self._direct else f"{parent}/.{last}.{token_hex(4)}.partial"

        def attempt() -> None:
            if not self._direct:
                self._fs.makedirs(parent, exist_ok=True)
            write(partial)
            if partial != place:
                self._fs.mv(partial, place)

        try:
            self._tried(name, "could not be written", attempt)
        except FileNotFoundError as error:  # such as a bucket that does not exist
            raise self._failed(name, "could not be written", error) from None

    def _brought(self, name: str) -> bool:
        """Bring a file here, if it is there; one that another worker is replacing is looked at again."""
        for pause in (*_PAUSES, None):
            check = self._check_of(name)
            if check is None:
                return False
            if self._download(name, *check):
                return True
            if pause is not None:
                time.sleep(pause)
        raise CorruptFile(
            f"{self._said(name)}: is not what a run wrote there (size or digest differs from {name}{CHECK}); "
            "remove both to make them again"
        )

    def _check_of(self, name: str) -> tuple[int, str] | None:
        """The size and digest of a file there; none if it is not there."""
        place = f"{self._root}/{name}{CHECK}"

        def read() -> bytes | None:
            self._fs.invalidate_cache()
            try:
                with self._fs.open(place, "rb") as file:
                    return bytes(file.read(1024))
            except FileNotFoundError:
                return None

        content = self._tried(name + CHECK, "could not be read", read)
        if content is None:
            return None
        match parse_json(content, self._said(name + CHECK)):
            case {"size": int(size), "digest": str(digest)}:
                return size, digest
        raise CorruptFile(f"{self._said(name + CHECK)}: not what a run writes there; remove it")

    def _download(self, name: str, size: int, digest: str) -> bool:
        """Whether the file there is the one of that size and digest; then it is here too."""
        path = self.folder / name

        def attempt() -> bool:
            path.parent.mkdir(parents=True, exist_ok=True)
            hasher = xxhash.xxh3_128()
            with self._fs.open(f"{self._root}/{name}", "rb") as there, replacing(path) as here:
                while (block := there.read(_BLOCK)) and here.tell() + len(block) <= size:
                    here.write(block)
                    hasher.update(block)
                if block or here.tell() != size or hasher.hexdigest() != digest:
                    raise _Different
            return True

        try:
            self._tried(name, "could not be read", attempt)
        except (_Different, FileNotFoundError):
            return False
        self._known[name] = _state(path)
        return True

    def _listed(self, *names: str) -> list[str]:
        """The files there in some folders of a run; names that lead elsewhere are nobody's."""
        found = []
        for name in names:
            for place in self._looked(self._fs.find, name):
                inner = place.rpartition(f"{self._root}/{name}/")[2]
                if inner.endswith(CHECK) and _stays(inner):
                    found.append(f"{name}/{inner.removesuffix(CHECK)}")
        return sorted(found)

    def _looked(self, look: Callable[..., Iterable[object]], name: str, **how: object) -> list[str]:
        """The places that a listing names; none of a folder that is not there."""

        def attempt() -> list[str]:
            self._fs.invalidate_cache()
            try:
                return [str(each) for each in look(f"{self._root}/{name}".rstrip("/"), **how)]
            except FileNotFoundError:
                return []

        return self._tried(name, "could not be read", attempt)

    def _tried(self, name: str, what: str, attempt: Callable[[], T]) -> T:
        """A request, tried again where the network or the server fails.

        Raises: TaskvecError, which names the place and no credentials.
        """
        for pause in self._pauses:
            try:
                return attempt()
            except (TaskvecError, _Different, FileNotFoundError, MemoryError):
                raise
            except OSError as error:
                if error.errno in _FULL:
                    raise self._full(name, error) from None
                if pause is None or isinstance(error, PermissionError):
                    raise self._failed(name, what, error) from None
            except Exception as error:  # packages of file systems have errors of their own
                if pause is None:
                    raise self._failed(name, what, error) from None
            time.sleep(pause)
        raise AssertionError(name)

    def _failed(self, name: str, what: str, error: Exception) -> TaskvecError:
        known: dict[type, str] = {
            FileNotFoundError: "there is no such bucket or folder",
            PermissionError: "access is denied",
        }
        why = known.get(type(error)) or getattr(error, "strerror", None) or type(error).__name__
        return TaskvecError(f"{self._said(name)}: {what} ({why}){_KEPT}")

    def _full(self, name: str, error: OSError) -> DiskFull:
        reason = (error.strerror or "no space left").lower()
        return DiskFull(
            f"{self.folder / name}, {self._said(name)}: {reason}, here or there; free some space and run it "
            "again to go on"
        )

    def _said(self, name: str) -> str:
        return f"{said(self.url).rstrip('/')}/{name}"


class _Different(Exception):
    """What was read is not what was written."""


def open_files(folder: Path, storage: str | None) -> Files:
    """The files of a run. Raises: InputError for a storage that makes no sense."""
    return Here(folder) if storage is None else Stored(folder, storage)


def check_storage(storage: str) -> None:
    """Make sure that something can be written there, and read.

    Raises: InputError.
    """
    with tempfile.TemporaryDirectory() as folder:
        files, mark = Stored(Path(folder), storage), token_hex(4)
        files.probe(mark)
        try:
            if not files.waits_for(mark, LATE):
                raise InputError(
                    f"{said(files.url)}: what is written there is not seen again; give another place"
                )
        finally:
            files.unprobe(mark)


def checked_storage(storage: str) -> str:
    """A storage as a URL: a path of this machine becomes one.

    Raises: InputError for what is neither.
    """
    if is_url(storage):
        protocol_of(storage)
        return storage
    if not storage.strip() or "\0" in storage:
        raise InputError(
            f"storage {shown(storage)}: expected a URL, such as s3://bucket/run, or a shared path"
        )
    return Path(storage).expanduser().absolute().as_uri()


def _stays(name: str) -> bool:
    """Whether a name from a listing stays in its folder."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and not any(part == ".." or part.startswith(".") or "\0" in part or "\\" in part for part in parts)
    )


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
