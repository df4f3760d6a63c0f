"""Where the rows of a task come from: one source a file, its options are its fields."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import Field

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reading import local_path, open_file, printable, shortened, shown
from taskvec.registry import Registry

SplitName = Literal["train", "validation", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


def called(split: SplitName, splits: Mapping[SplitName, str]) -> str | None:
    """What the data call a split, by those of ``splits``; none for one that they do not have.

    Where it names others alone, train and test go by their own names, unless these stand for another split.
    """
    if split in splits or split == "validation" or split in splits.values():
        return splits.get(split)
    return split


UNPACKED = 1 << 26
"""Bytes that any compressed file may hold."""

_RATIO = 200
"""Times its own size that a larger one may hold; texts and pictures hold a tenth of that."""


@dataclass(frozen=True)
class Rows:
    """Examples of one split as a source holds them, before labels are given meaning.

    Args:
        inputs: a sequence of texts, pairs of texts or images (H, W, 3), uint8, perhaps read on access; or an
            array of images (N, H, W, 3).
        labels: one for each input: a place in the classes, or a class name.
        where: says which row of which file an input came from, for messages.
    """

    inputs: Any
    labels: Sequence[int | float | str]
    where: Callable[[int], str]


class Source(Config, ABC):
    """Options of a data source, as they stand under ``data`` in a suite file.

    Validation touches no file: suites are listed on machines that hold none of their data.
    """

    source: str
    folder: Path = Field(default=Path(), exclude=True)
    """What relative paths are relative to; ``load_suite`` sets it to the folder of the suite file."""

    def existing(self, path: str) -> Path:
        """The file or folder behind a path of the suite file.

        Raises: InputError if a variable in it is not set, or nothing is there.
        """
        place = self.folder / expanded(path)
        try:
            place.stat()
        except OSError as error:
            reason = "no such file or folder" if isinstance(error, FileNotFoundError) else error.strerror
            variables = "".join(f"; {name} is {os.environ[name]!r}" for name in _VARIABLE.findall(path))
            raise InputError(f"{place}: {reason}{variables}") from None
        return place

    def existing_file(self, path: str) -> Path:
        """The same for a file.

        Raises: InputError if it is a folder, too.
        """
        place = self.existing(path)
        if not place.is_file():
            raise InputError(f"{place}: is no file, expected a {self.source} file")
        return place

    @abstractmethod
    def rows(self, split: SplitName) -> Rows | None:
        """The rows of a split; none when the source has no such split.

        Raises: InputError naming the file, row and field at fault.
        """

    @abstractmethod
    def digest(self) -> str:
        """Changes when the data change."""

    def class_names(self) -> tuple[str, ...] | None:
        """The classes, where the data carry their names."""
        return None


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expanded(path: str) -> Path:
    """A path of a suite file with ``${VARIABLE}`` filled in.

    Raises: InputError if one of them is not set.
    """
    for name in _VARIABLE.findall(path):
        if not os.environ.get(name):
            tail = path.split("}", 1)[1].lstrip("/")
            raise InputError(
                f"{path}: the environment variable {name} is not set, expected the folder that holds "
                f"{tail!r}; export {name}=/path/to/data"
            )
    return local_path(_VARIABLE.sub(lambda match: os.environ[match[1]], path))


SOURCES: Registry[type[Source]] = Registry(
    "data source",
    {
        "builtin": "taskvec.tasks.builtin.source:BuiltinWorld",
        "jsonl": "taskvec.tasks.sources.tables:Jsonl",
        "csv": "taskvec.tasks.sources.tables:Csv",
        "parquet": "taskvec.tasks.sources.tables:Parquet",
        "text": "taskvec.tasks.sources.texts:Text",
        "npz": "taskvec.tasks.sources.images:Npz",
        "images": "taskvec.tasks.sources.images:ImageFolder",
        "hf": "taskvec.tasks.sources.hub:Hub",
    },
)
"""Sources by the name that stands under ``data.source``."""


def numbered(path: Path, rows: Sequence[int]) -> Callable[[int], str]:
    """Names of rows for messages: ``data.csv, row 12``."""
    return lambda place: f"{path}, row {rows[place]}"


def digest_of(*files: Path) -> str:
    """Of the bytes of files, one after the other."""
    digest = xxhash.xxh3_128()
    for path in files:
        with open_file(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def most_unpacked(packed: int) -> int:
    """How much may come out of so many compressed bytes; a bomb gives a thousandfold."""
    return max(UNPACKED, _RATIO * packed)


@contextmanager
def one_sentence(what: str, remedy: str = "") -> Iterator[None]:
    """Around a library that reads a file: of a damaged one, it raises a dozen unrelated types.

    Raises: InputError for each of them: ``what``, the reason in brackets, the remedy.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what} ({printable(shortened(reason))}){remedy}") from None


def text_of(value: object, where: str, field: str) -> str:
    """A field as a model reads it.

    Raises: InputError for what is no text.
    """
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: {field} is a {type(value).__name__}, expected text")
    return str(value)


_WHOLE = re.compile(r"\s*-?[0-9]{1,18}\s*")


def label_of(value: object, where: str, field: str) -> int | float | str:
    """Labels are numbers or names; a whole number in text (CSV) is a number.

    Raises: InputError for anything else.
    """
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise InputError(f"{where}: {field} {shown(value)}, expected a whole number or a class name")
