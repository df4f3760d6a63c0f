"""What is read from disk, by one door for each kind: every failure is one sentence that names the file.

Files are hostile: names in them lead nowhere else, what is no plain file is never opened, and nothing is
allocated for a size that a file merely claims.
"""

import errno
import json
import os
import re
import reprlib
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from taskvec.errors import CorruptFile, InputError

_TEXT_LIMIT = 1 << 28
"""Bytes of the largest text that is read whole: tokenizers and indexes have tens of MB at most."""

_LIKE_A_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_NAME_LIMIT = 255
"""Bytes of the longest name of a file."""

_PATH_LIMIT = 4095

DEPTH = 100
"""How deep lists and mappings may be nested in JSON and YAML; honest files have ten levels."""

_POINTER = b"version https://git-lfs.github.com/spec/"

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_AGAIN = "download or write it again"

awaited: dict[str, Callable[[], None]] = {}
"""Files of places elsewhere that get their content when they are first opened: path -> what fetches it."""

mirrored: dict[str, str] = {}
"""Folders that stand for places elsewhere -> the URL of each, as it may be printed."""


def with_places(text: str) -> str:
    """A message in which folders that stand for places elsewhere are called by their URLs."""
    for folder, place in mirrored.copy().items():
        text = text.replace(folder, place)
    return text


def local_path(text: str | os.PathLike[str]) -> Path:
    """A path that somebody gave, with ``~`` filled in; that of a ``file://`` URL.

    Raises: InputError for what can be no path.
    """
    if not str(text):
        raise InputError("an empty name, expected a path")
    if str(text)[:7].lower() == "file://":
        text = "/" + unquote(str(text)[7:].partition("/")[2])
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{text}: no such user, so no home folder; write the path out") from None
    return _check_path(path)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path; false for what can be no path, or may not be looked at."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder at a path; false for what can be no path, or may not be looked at."""
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False


def open_regular(path: Path) -> int:
    """A handle of a plain file, for reading.

    Raises: InputError if it is not there, may not be read, or is a pipe, a device, a socket or a folder;
        opening one of those can wait forever, or do things.
    """
    if fetch := awaited.get(str(path)):
        fetch()
    try:
        _check_regular(path, _check_path(path).stat())
        # Between the look and the opening another file may have come: look at what was opened too.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_regular(path, os.fstat(handle))
        except BaseException:
            os.close(handle)
            raise
    except OSError as error:
        raise InputError(f"{path}: {_missing(path) or reason(error)}") from None
    return handle


def _missing(path: Path) -> str | None:
    """Why a path is none, if it was meant for a URL; two slashes are one in paths."""
    is_url = _LIKE_A_URL.match(str(path)) and not path.exists()
    return "a URL, expected a file on this machine" if is_url else None


def open_file(path: Path) -> BufferedReader:
    """A plain file as a stream of bytes.

    Raises: InputError, as ``open_regular``.
    """
    return os.fdopen(open_regular(path), "rb")


def check_regular(path: Path) -> None:
    """Refuse what ``open_regular`` refuses, before another library opens it by name.

    Raises: InputError.
    """
    os.close(open_regular(path))


def _check_path(path: Path) -> Path:
    if "\0" in str(path):
        raise InputError(f"{printable(str(path))}: holds a zero byte, which no path can")
    try:
        parts = [part.encode() for part in path.parts]
    except UnicodeEncodeError:
        raise InputError(f"{shown(str(path))}: a name that is not UTF-8; rename it") from None
    if max(map(len, parts), default=0) > _NAME_LIMIT or sum(map(len, parts)) + len(parts) > _PATH_LIMIT:
        raise InputError(f"{shown(str(path))}: file name too long")
    return path


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is {describe(status)}, expected a file")


def describe(status: os.stat_result) -> str:
    """The kind of a file, in words."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def reason(error: OSError) -> str:
    """Why something on the disk could not be read, in lower case."""
    known = {errno.ENOENT: "no such file", errno.ENOTDIR: "no such file", errno.EACCES: "may not be read"}
    return known.get(error.errno or 0) or (error.strerror or str(error)).lower()


def read_bytes(path: Path, limit: int = _TEXT_LIMIT) -> bytes:
    """All of a plain file.

    Raises: InputError if it cannot be read or has more than ``limit`` bytes.
    """
    with open_file(path) as file:
        # Room is made for all that is asked for, so ask for what is there.
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            most = f"{limit / 1e6:,.0f} MB"
            raise InputError(f"{path}: holds more than {most}, too much for a file of its kind")
        try:
            content = file.read(size)
        except OSError as error:
            raise InputError(f"{path}: {reason(error)}") from None
    check_pointer(content, path)
    return content


def check_pointer(content: bytes, path: Path) -> None:
    """Refuse what git leaves in the place of a large file until that is fetched.

    Raises: CorruptFile.
    """
    if content.startswith(_POINTER):
        raise CorruptFile(f"{path}: an LFS pointer, not the file itself; run git lfs pull in its folder")


def fill(handle: int, buffer: memoryview, place: int) -> bool:
    """Read from byte ``place`` of an open file until the buffer is full; whether the file is long enough."""
    # By position: threads and forked processes share a handle, and with it the place that a plain read moves.
    while buffer:
        count = os.preadv(handle, [buffer], place)
        if count == 0:
            return False
        buffer, place = buffer[count:], place + count
    return True


def copy_regular(path: Path, copy: Path) -> None:
    """Copy a plain file to where nothing is yet.

    Raises: InputError if it cannot be read, or changes its size meanwhile; OSError if it cannot be written.
    """
    with open_file(path) as source, copy.open("xb") as target:
        left = os.fstat(source.fileno()).st_size
        while left:
            try:
                block = source.read(min(left, 1 << 20))
            except OSError as error:
                raise InputError(f"{path}: {reason(error)}") from None
            if not block:
                raise InputError(f"{path}: became shorter while it was copied; run again")
            left -= target.write(block)


def read_text(path: Path, limit: int = _TEXT_LIMIT) -> str:
    """All of a text file in UTF-8.

    Raises: InputError if it cannot be read or is too large; CorruptFile if it is no such text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(
            f"{path}: cannot be read as text in UTF-8 (byte {error.start}: {error.reason}); {_AGAIN}"
        ) from None


def read_json(path: Path, limit: int = _TEXT_LIMIT) -> Any:
    """The content of a JSON file.

    Raises: InputError if it cannot be read; CorruptFile if it is no JSON, has a name twice, is nested deeper
        than ``DEPTH``, or holds characters that no file can.
    """
    return parse_json(read_text(path, limit), str(path))


def read_mapping(path: Path, limit: int = _TEXT_LIMIT) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises: as ``read_json``; CorruptFile if it holds anything else.
    """
    content = read_json(path, limit)
    if not isinstance(content, dict):
        raise CorruptFile(f"{path}: holds {kind_of(content)}, expected a mapping; {_AGAIN}")
    return content


def parse_json(text: str | bytes, where: str) -> Any:
    """The content of a JSON document; ``where`` opens messages.

    Raises: CorruptFile, as ``read_json``.
    """
    try:
        # Strictly: left to itself, the reader of bytes lets halves of characters pass.
        text = text if isinstance(text, str) else text.decode("utf-8")
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise CorruptFile(f"{where}: nested deeper than {DEPTH}; {_AGAIN}") from None
    except ValueError as error:
        raise CorruptFile(f"{where}: not valid JSON ({printable(str(error))}); {_AGAIN}") from None
    if _depth(content) > DEPTH:
        raise CorruptFile(f"{where}: nested deeper than {DEPTH}; {_AGAIN}")
    # Half a surrogate pair can be written in JSON, and nowhere else.
    if "\\ud" in text.lower():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise CorruptFile(f"{where}: holds half a character (a lone surrogate); {_AGAIN}") from None
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping; a name given twice is an error, not a lottery."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the name {shown(twice)} is given twice")
    return content


def _depth(content: Any) -> int:
    """How deep lists and mappings are nested, up to one more than ``DEPTH``."""
    level, depth = [content], 0
    while depth <= DEPTH:
        level = [part for part in level if isinstance(part, list | dict)]
        if not level:
            break
        level, depth = [inner for part in level for inner in _parts(part)], depth + 1
    return depth


def _parts(content: Any) -> Iterator[Any]:
    return iter(content.values() if isinstance(content, dict) else content)


def kind_of(content: object) -> str:
    """What a JSON document holds, in words.

    >>> kind_of([1]), kind_of(None)
    ('a list', 'nothing')
    """
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(content), "a number")


def inside(folder: Path, name: object, where: object) -> Path:
    """The path of what a file in ``folder`` names.

    Args:
        name: as it stands in the file: relative, without steps upward.
        where: the file; opens messages.

    Raises: InputError if the name leads out of the folder, by itself or through a link.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{where}: {shown(name)} is no name of a file; {_AGAIN}")
    place = Path(name)
    if place.is_absolute() or ".." in place.parts:
        raise InputError(f"{where}: {shown(name)} leads out of the folder; {_AGAIN}")
    path = folder / _check_path(place)
    check_inside(path, folder)
    return path


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a file of ``folder`` that is a link to somewhere else.

    The snapshot folders of a hub cache hold links to the blobs beside them, which belong to the model.

    Raises: InputError.
    """
    home = Path(os.path.realpath(folder))
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in (home, *_blobs(home))):
        raise InputError(
            f"{path}: is a link that leads out of its folder, to {real}; put a copy in place "
            "of the link, or name the folder it leads to"
        )


def _blobs(home: Path) -> list[Path]:
    """Where the links of a snapshot in a hub cache lead: models--ORG--NAME/snapshots/REVISION to …/blobs."""
    return [
        parent.parent / "blobs"
        for parent in home.parents
        if parent.name == "snapshots" and parent.parent.name.startswith(("models--", "datasets--"))
    ]


def shown(value: object) -> str:
    """What stands in a file, in few enough characters for a message.

    >>> shown("a" * 1000)[:3], len(shown("a" * 1000))
    ("'aa", 120)
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = 120
    return printable(shortener.repr(value))


def shortened(text: str, most: int = 200) -> str:
    """A text cut to the length that a message has room for."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    """A text without characters that steer a terminal, which are written as escapes.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    steers = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character != "\n"
    return character.encode("unicode_escape", "surrogatepass").decode() if steers else character
