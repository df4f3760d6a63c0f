"""Where the rows of a task come from: one source a file, its options are its fields."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.registry import Registry

SplitName = Literal["train", "validation", "test"]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


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
    labels: Sequence[int | str]
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
        found = self.folder / expanded(path)
        if not found.exists():
            variables = "".join(f"; {name} is {os.environ[name]!r}" for name in _VARIABLE.findall(path))
            raise InputError(f"{found}: no such file or folder{variables}")
        return found

    def existing_file(self, path: str) -> Path:
        """The same for a file.

        Raises: InputError if it is a folder, too.
        """
        found = self.existing(path)
        if not found.is_file():
            raise InputError(f"{found}: is no file, expected a {self.source} file")
        return found

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
    return Path(_VARIABLE.sub(lambda match: os.environ[match[1]], path)).expanduser()


SOURCES: Registry[type[Source]] = Registry(
    "data source",
    {
        "builtin": "taskvec.tasks.builtin.source:BuiltinWorld",
        "jsonl": "taskvec.tasks.sources.tables:Jsonl",
        "csv": "taskvec.tasks.sources.tables:Csv",
        "parquet": "taskvec.tasks.sources.tables:Parquet",
        "npz": "taskvec.tasks.sources.images:Npz",
        "images": "taskvec.tasks.sources.images:ImageFolder",
        "hf": "taskvec.tasks.sources.hub:Hub",
    },
)
"""Sources by the name that stands under ``data.source``."""


def numbered(path: Path, rows: Sequence[int]) -> Callable[[int], str]:
    """Names of rows for messages: ``data.csv, row 12``."""
    return lambda place: f"{path}, row {rows[place]}"


def chunks(path: Path, size: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(size):
            yield piece
