"""Files and folders of our own: made and opened without following links, never somebody else's.

Working names are known in advance (``.OUT.partial``, ``.lock``), so anything may stand there: a link to a
folder of the user's, or one that somebody else put there to have us write where it leads.
"""

import fcntl
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from taskvec.errors import InputError, TaskvecError
from taskvec.reading import describe

_REMEDY = "move it away, or choose another output"


def open_own(path: Path, *, fresh: bool = False) -> int:
    """A handle of a working file, for reading and writing; made if it is not there.

    Args:
        fresh: remove what is there, and make the file anew.

    Raises: InputError for a link, for anything but a plain file, and for a file of another user.
    """
    if fresh:
        with suppress(FileNotFoundError):
            path.unlink()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return _open(path, flags | (os.O_EXCL if fresh else 0), stat.S_ISREG)


def open_own_folder(path: Path) -> int:
    """A handle of a working folder, made if it is not there.

    Raises: InputError for a link, for anything but a folder, and for a folder of another user.
    """
    with suppress(FileExistsError):
        path.mkdir()
    return _open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, stat.S_ISDIR)


def _open(path: Path, flags: int, expected: Callable[[int], bool]) -> int:
    try:
        status = path.lstat()
        if not expected(status.st_mode):
            raise InputError(f"{path}: is {describe(status)}, and taskvec works under that name; {_REMEDY}")
    except FileNotFoundError:
        pass
    # Since that look another may have come, which the flags or a second look refuse.
    handle = os.open(path, flags, 0o666)
    opened = os.fstat(handle)
    if not expected(opened.st_mode) or opened.st_uid != os.geteuid():
        os.close(handle)
        raise InputError(f"{path}: belongs to another user, and taskvec works under that name; {_REMEDY}")
    return handle


def lock(handle: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file or folder; whether no other process has it locked.

    The lock ends when the handle is closed or the process dies, so one that is killed blocks nobody.

    Args:
        shared: with all who lock it so.
        wait: until others have let go of it.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock(handle: int) -> None:
    """Let go of the lock on what stays open; also where a forked process has it open too."""
    fcntl.flock(handle, fcntl.LOCK_UN)


def is_at(handle: int, path: Path) -> bool:
    """Whether a name still stands for what is open."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file or to the list of a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write: it takes the place of ``path`` once it is whole; if that fails, nothing changes."""
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(open_own(partial, fresh=True), "wb") as file:
        yield file
    partial.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file: the whole of it or, if that fails, what was there before."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a new JSON file for people and programs to read."""
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_at(handle: int, data: memoryview, place: int) -> None:
    """Write all of ``data`` from byte ``place`` of an open file on; one call of the system may write less."""
    while data:
        count = os.pwrite(handle, data, place)
        data, place = data[count:], place + count


def unwritable(target: Path | str, error: OSError, rest: str = "nothing was left behind") -> TaskvecError:
    """What to raise where the system refuses to write a part of ``target``."""
    return TaskvecError(f"{target}: could not be written ({(error.strerror or str(error)).lower()}); {rest}")
