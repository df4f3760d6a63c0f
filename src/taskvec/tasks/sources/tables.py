"""Tables of texts: JSON lines, CSV and Parquet."""

import csv
import gzip
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import xxhash
from pydantic import Field, NonNegativeInt, model_validator

from taskvec.errors import InputError, MissingExtra
from taskvec.registry import nearest
from taskvec.tasks.source import SPLITS, Rows, Source, SplitName, chunks, numbered

Row = Mapping[str, Any]

_WHOLE = re.compile(r"\s*-?[0-9]{1,18}\s*")


class Table(Source):
    """Rows with named fields, in one file with a field that tells the split, or in a file for each split."""

    path: str | None = None
    """One file for all splits."""
    files: dict[SplitName, str] = Field(default_factory=dict)
    """A file for each split, instead of ``path``."""
    text: str = "text"
    """Field of the text."""
    text2: str | None = None
    """Field of the second text, for tasks on pairs."""
    label: str = "label"
    """Field of the label: an index into the classes, or a class name."""
    split: str = "split"
    """Field that tells the split, when all are in one file."""
    splits: dict[SplitName, str] = Field(default_factory=dict)
    """What that field holds for each split, where it is not the split's own name."""
    skip: NonNegativeInt = 0
    """Leading rows that hold no example."""

    @model_validator(mode="after")
    def _one_way_to_files(self) -> "Table":
        if (self.path is None) == (not self.files):
            raise ValueError("expected either 'path' (one file) or 'files' (one for each split)")
        return self

    def rows(self, split: SplitName) -> Rows | None:
        """The rows of a split, in file order."""
        if self.path is None:
            path = self.files.get(split)
            return None if path is None else self._examples(self.existing_file(path), None)
        if self.splits and split not in self.splits:
            return None
        found = self._examples(self.existing_file(self.path), self.splits.get(split, split))
        return found if len(found.inputs) or split != "validation" else None

    def digest(self) -> str:
        """Of the bytes of every file."""
        digest = xxhash.xxh3_128()
        for path in (self.path, *(self.files[name] for name in SPLITS if name in self.files)):
            if path is not None:
                for piece in chunks(self.existing_file(path)):
                    digest.update(piece)
        return digest.hexdigest()

    def _examples(self, path: Path, split: str | None) -> Rows:
        """Rows of ``path`` whose split field says ``split``; all of them for none."""
        inputs: list[str | tuple[str, str]] = []
        labels: list[int | str] = []
        numbers: list[int] = []
        for number, row in self._numbered(path):
            where = f"{path}, row {number}"
            if split is not None and self._split_of(row, where) != split:
                continue
            text = _text(row, self.text, where)
            inputs.append((text, _text(row, self.text2, where)) if self.text2 else text)
            labels.append(_label(_field(row, self.label, where), where, self.label))
            numbers.append(number)
        return Rows(inputs, labels, numbered(path, numbers))

    def _split_of(self, row: Row, where: str) -> str:
        """What the split field says; a name nobody declared would be left out without a word."""
        found = str(_field(row, self.split, where))
        if not self.splits and found not in SPLITS:
            raise InputError(
                f"{where}: {self.split} {found!r}, expected {', '.join(SPLITS)}; name it under 'splits'"
            )
        return found

    def _numbered(self, path: Path) -> Iterator[tuple[int, Row]]:
        """Rows after the skipped ones, counted from 1 with them."""
        return islice(enumerate(self.read(path), start=1), self.skip, None)

    @abstractmethod
    def read(self, path: Path) -> Iterator[Row]:
        """All rows of one file."""


class Jsonl(Table):
    """One JSON object a line; compressed if the name ends in .gz."""

    source: Literal["jsonl"] = "jsonl"

    def read(self, path: Path) -> Iterator[Row]:
        """Objects, line by line."""
        with _opened(path) as file:
            for number, line in enumerate(_lines(file, path), start=1):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{path}, row {number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise InputError(f"{path}, row {number}: {type(row).__name__}, expected an object")
                yield row


class Csv(Table):
    """Comma-separated values with a line of column names; compressed if the name ends in .gz."""

    source: Literal["csv"] = "csv"
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    columns: tuple[str, ...] | None = None
    """Column names, for files without a line of them."""

    def read(self, path: Path) -> Iterator[Row]:
        """Records by column name."""
        with _opened(path) as file:
            lines = _lines(file, path)
            try:
                for row in csv.DictReader(lines, fieldnames=self.columns, delimiter=self.delimiter):
                    yield {key: value for key, value in row.items() if value is not None}
            except csv.Error as error:
                raise InputError(f"{path}: not a table of columns ({error})") from None


class Parquet(Table):
    """Parquet files."""

    source: Literal["parquet"] = "parquet"

    def read(self, path: Path) -> Iterator[Row]:
        """Records, a batch at a time."""
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError:
            raise MissingExtra(
                "pyarrow is not installed, needed for parquet; pip install 'taskvec[data]'"
            ) from None
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from batch.to_pylist()
        except (arrow.ArrowInvalid, OSError) as error:
            raise InputError(f"{path}: not a parquet file ({str(error).splitlines()[0]})") from None


def _opened(path: Path) -> TextIO:
    # utf-8-sig: spreadsheets put a byte order mark before the first column.
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error})") from None


def _field(row: Row, name: str, where: str) -> object:
    if name not in row:
        raise InputError(f"{where}: no field {name!r}; {nearest(name, map(str, row))}")
    if row[name] is None:
        raise InputError(f"{where}: the field {name!r} is empty")
    return row[name]


def _text(row: Row, name: str, where: str) -> str:
    value = _field(row, name, where)
    if not isinstance(value, str | int | float):
        raise InputError(f"{where}: {name} is a {type(value).__name__}, expected text")
    text = str(value)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{where}: {name} holds half of a surrogate pair, which is no text")
    return text


def _label(value: object, where: str, field: str) -> int | str:
    """Labels are whole numbers or names; a number in text (CSV) is a number."""
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value) else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise InputError(f"{where}: {field} {value!r}, expected a whole number or a class name")
