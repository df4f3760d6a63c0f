"""Tables of texts: JSON lines, CSV and Parquet."""

import csv
import gzip
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from taskvec.errors import InputError, optional
from taskvec.reading import open_file, parse_json, shown
from taskvec.registry import nearest
from taskvec.tasks.source import (
    SPLITS,
    UNPACKED,
    Rows,
    Source,
    SplitName,
    called,
    digest_of,
    label_of,
    most_unpacked,
    numbered,
    one_sentence,
    text_of,
)

Row = Mapping[str, Any]


def _words(value: object) -> object:
    """A value, or several, as the texts that rows of any kind of table are compared with."""
    listed = value if isinstance(value, list | tuple) else [value]
    return (
        [str(word) for word in listed]
        if all(isinstance(word, str | int | float) for word in listed)
        else value
    )


Words = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_words)]

_LINE = 10_000_000
"""Characters of the longest line of a table."""

_ROW = 50
"""What a row takes in memory besides its text, in bytes."""


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
    label: str | None = "label"
    """Field of the label: an index into the classes, a class name, or the number of a regression; none for
    texts without labels."""
    split: str = "split"
    """Field that tells the split, when all are in one file."""
    splits: dict[SplitName, str] = Field(default_factory=dict)
    """What that field holds for each split, where it is not the split's own name."""
    skip: int = Field(default=0, ge=0, lt=2**31)
    """Leading rows that hold no example."""
    only: dict[str, Words] = Field(default_factory=dict)
    """Field -> value, or list of values: rows that hold another are left out."""

    @model_serializer(mode="wrap")
    def _without_young(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fingerprint of a task that leaves nothing out is that of before there was ``only``."""
        fields: dict[str, Any] = serialize(self)
        return fields if self.only else {key: value for key, value in fields.items() if key != "only"}

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
        name = called(split, self.splits) if self.splits else split
        if name is None:
            return None
        rows = self._examples(self.existing_file(self.path), name)
        return rows if len(rows.inputs) or split != "validation" else None

    def digest(self) -> str:
        """Of the bytes of every file."""
        paths = (self.path, *(self.files.get(name) for name in SPLITS))
        return digest_of(*(self.existing_file(path) for path in paths if path is not None))

    def _examples(self, path: Path, split: str | None) -> Rows:
        """Rows of ``path`` whose split field says ``split``; all of them for none."""
        inputs: list[str | tuple[str, str]] = []
        labels: list[int | float | str] = []
        numbers: list[int] = []
        for number, row in self._numbered(path):
            where = f"{path}, row {number}"
            if split is not None and self._split_of(row, where) != split:
                continue
            if any(str(_field(row, name, where)) not in words for name, words in self.only.items()):
                continue
            text = _text(row, self.text, where)
            inputs.append((text, _text(row, self.text2, where)) if self.text2 else text)
            label = 0 if self.label is None else label_of(_field(row, self.label, where), where, self.label)
            labels.append(label)
            numbers.append(number)
        return Rows(inputs, labels, numbered(path, numbers))

    def _split_of(self, row: Row, where: str) -> str:
        """What the split field says; a name nobody declared would be left out without a word."""
        split = str(_field(row, self.split, where))
        if not self.splits and split not in SPLITS:
            raise InputError(
                f"{where}: {self.split} {shown(split)}, expected {', '.join(SPLITS)}; name it under 'splits'"
            )
        return split

    def _numbered(self, path: Path) -> Iterator[tuple[int, Row]]:
        """Rows after the skipped ones, counted from 1 with them."""
        return islice(enumerate(self.read(path), start=1), self.skip, None)

    def _fields(self) -> list[str]:
        """The fields that make an example."""
        split = self.split if self.path is not None else None
        names = [self.text, self.text2, self.label, split, *self.only]
        return [name for name in dict.fromkeys(names) if name is not None]

    def _check_columns(self, columns: Sequence[str], path: Path) -> None:
        for name in self._fields():
            if columns.count(name) > 1:
                raise InputError(f"{path}: the column {name!r} is there twice; rename one of them")

    @abstractmethod
    def read(self, path: Path) -> Iterator[Row]:
        """All rows of one file."""


class Jsonl(Table):
    """One JSON object a line; compressed if the name ends in .gz."""

    source: Literal["jsonl"] = "jsonl"

    def read(self, path: Path) -> Iterator[Row]:
        """Objects, line by line."""
        for number, line in enumerate(_lines(path), start=1):
            row = parse_json(line, f"{path}, row {number}")
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
        with one_sentence(f"{path}: not a table of columns"):
            rows = csv.reader(_lines(path), delimiter=self.delimiter)
            columns = next(rows, []) if self.columns is None else list(self.columns)
            self._check_columns(columns, path)
            for number, row in enumerate(filter(None, rows), start=1):
                if any(row[len(columns) :]):
                    raise InputError(
                        f"{path}, row {number}: {len(row)} fields, and there are {len(columns)} columns; "
                        f"quote the fields that hold {self.delimiter!r}"
                    )
                yield dict(zip(columns, row, strict=False))


class Parquet(Table):
    """Parquet files."""

    source: Literal["parquet"] = "parquet"

    def read(self, path: Path) -> Iterator[Row]:
        """The fields that make examples, a batch at a time."""
        missing = "pyarrow is not installed, needed for parquet; pip install 'taskvec[data]'"
        parquet = optional("pyarrow.parquet", missing)
        left = most_unpacked(path.stat().st_size)
        with one_sentence(f"{path}: not a parquet file"), parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            self._check_columns(columns, path)
            for name in self._fields():
                if name not in columns:
                    raise InputError(f"{path}: no field {name!r}; {nearest(name, columns)}")
            # One value written once may stand in every row: take few rows at a time where values can be long.
            groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
            longest = max((group.total_byte_size for group in groups), default=1)
            rows = max(16, min(1024, UNPACKED // max(longest, 1)))
            for batch in file.iter_batches(batch_size=rows, columns=self._fields()):
                left -= batch.num_rows * _ROW + batch.nbytes
                _check_unpacked(left, path)
                yield from batch.to_pylist()


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text, which may be packed by gzip."""
    left = most_unpacked(path.stat().st_size)
    with one_sentence(f"{path}: cannot be read to its end"), open_file(path) as held:
        # utf-8-sig: spreadsheets put a byte order mark before the first column.
        unpacked = gzip.GzipFile(fileobj=held) if path.suffix == ".gz" else held
        file = TextIOWrapper(unpacked, encoding="utf-8-sig", newline="")
        while line := file.readline(_LINE + 1):
            left -= len(line) + _ROW
            _check_unpacked(left, path)
            if len(line) > _LINE:
                raise InputError(f"{path}: has a line of more than {_LINE / 1e6:.0f} million characters")
            yield line


def _check_unpacked(left: int, path: Path) -> None:
    if left < 0:
        raise InputError(
            f"{path}: holds far more than a file of its size can in good faith; "
            "if it is meant, unpack it and name the result"
        )


def _field(row: Row, name: str, where: str) -> object:
    if name not in row:
        raise InputError(f"{where}: no field {name!r}; {nearest(name, map(str, row))}")
    if row[name] is None:
        raise InputError(f"{where}: the field {name!r} is empty")
    return row[name]


def _text(row: Row, name: str, where: str) -> str:
    return text_of(_field(row, name, where), where, name)
