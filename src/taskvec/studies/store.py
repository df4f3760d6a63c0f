"""A run folder: records of finished cells, one JSON line each, never computed twice."""

import json
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from taskvec.errors import CorruptFile, InputError, OutputExists
from taskvec.reading import inside, parse_json, read_bytes
from taskvec.studies.files import PROBE, Files
from taskvec.studies.storage import open_files
from taskvec.turns import alone
from taskvec.writing import lock, open_own, remove

_RECORDS = 1 << 30
"""Bytes of the records of one run, at most; heat maps have some MB."""

_BEGIN = b'{"cell": "'
"""What a record begins with, be it cut short."""

MADE = (
    "partial",
    "vectors",
    "logs",
    "statistics",
    "inspected",
    "outputs",
    "untrained",
    "figures",
    "run.json",
    "results.json",
    "report.md",
    "report.html",
    "records.jsonl",
)
"""What runs leave in their folder; the records come last, so that a folder half removed is a run still."""


class Records(ABC):
    """Results by key, wherever their records are kept.

    A *cell* is one result that can be computed on its own. Its key is a digest of everything that decides the
    result, so a cell whose settings changed is another cell, and one that is there is taken as it is.

    Args:
        files: of the run, which records name.
    """

    def __init__(self, files: Files) -> None:
        self.files, self.folder = files, files.folder
        self.device = "cpu"
        """What computes, for the records."""
        self.computed = 0
        """Results that were not on record."""
        self._within = 0.0
        """Seconds of the cells that were finished, or waited for, within the one that is at work."""

    @abstractmethod
    def find(self, key: str) -> dict[str, Any] | None:
        """The record of this key; none if there is none."""

    @abstractmethod
    def put(self, record: dict[str, Any]) -> None:
        """Put a new result on record; the disk holds it when this returns."""

    def has(self, cell: str, inputs: Mapping[str, object]) -> bool:
        """Whether this cell is finished."""
        return self.find(key_of(cell, inputs)) is not None

    def result(
        self,
        cell: str,
        inputs: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
        there: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """The cell's result: the one on record, or a new one, which is put on record before it is returned.

        Args:
            cell: what kind of result, such as ``addition``.
            inputs: everything that decides it, plain data.
            there: whether the file is there that the record names. One that was lost is made again; computing
                is deterministic, so the record still holds.
        """
        key = key_of(cell, inputs)
        record = self.find(key)
        if record is None or not there():
            begun = time.monotonic()
            with alone(key):
                self._within += time.monotonic() - begun
                record = self.find(key)
                if record is None:
                    record = self._new(cell, key, inputs, compute)
                    self.put(record)
                    self.computed += 1
                elif not there():
                    self._timed(compute)
        stored: dict[str, Any] = record["result"]
        return stored

    def _new(
        self,
        cell: str,
        key: str,
        inputs: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
    ) -> dict[str, Any]:
        result, seconds, own = self._timed(compute)
        record = {
            "cell": cell,
            "key": key,
            "inputs": dict(inputs),
            "result": json.loads(json.dumps(result)),
            "seconds": round(seconds, 2),
            "own_seconds": round(own, 2),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "device": self.device,
        }
        return {**record, "digest": _digest(record)}

    def _timed(
        self, compute: Callable[[], Mapping[str, object]]
    ) -> tuple[Mapping[str, object], float, float]:
        """A result, the seconds that it took, and those of them that no cell within took."""
        before, self._within = self._within, 0.0
        started = time.monotonic()
        try:
            result = compute()
            seconds = time.monotonic() - started
            return result, seconds, seconds - self._within
        finally:
            self._within = before + time.monotonic() - started


class Store(Records):
    """The records of a run folder.

    Args:
        storage: a URL under which the files lie that records name, with copies in the folder; none for the
            folder alone.

    Nothing is read or written before it is asked for. Reading drops a last line cut short, which a killed run
    leaves.

    Raises: OutputExists if the folder is there and is no run folder; on first use, CorruptFile for any other
        damaged record.
    """

    def __init__(self, folder: Path, storage: str | None = None) -> None:
        super().__init__(open_files(folder, storage))
        self._path = folder / "records.jsonl"
        if folder.exists() and not folder.is_dir():
            raise OutputExists(f"{folder}: is a file, expected a run folder; choose another name")
        if folder.exists() and not self._path.exists() and not _is_empty(folder):
            raise OutputExists(f"{folder}: exists and holds no run (no records.jsonl); choose another folder")

    @property
    def begun(self) -> bool:
        """Whether the folder holds records of an earlier run; they are not read."""
        return self._path.exists() and self._path.stat().st_size > 0

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        if not self._path.exists():
            return {}
        records, rest = _read(self._path)
        if rest:
            with os.fdopen(open_own(self._path), "r+b") as file:
                file.truncate(self._path.stat().st_size - len(rest))
        return records

    @contextmanager
    def locked(self, fresh: bool = False) -> Iterator[None]:
        """Make the folder and hold it for this process.

        Args:
            fresh: remove what earlier runs made, and nothing else.

        Raises: InputError if another process holds it, or if what runs make in it is a link to elsewhere.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in map(self.folder.joinpath, MADE):
            if path.is_symlink() and not fresh:
                raise InputError(f"{path}: is a link, and a run writes under that name; move it away")
        os.close(open_own(self._path))
        with os.fdopen(open_own(self.folder / ".lock"), "rb") as file:
            if not lock(file.fileno()):
                raise InputError(f"{self.folder}: another run is working in this folder")
            if fresh:
                for path in map(self.folder.joinpath, MADE):
                    remove(path)
                os.close(open_own(self._path))
            yield

    def find(self, key: str) -> dict[str, Any] | None:
        """The record of this key; none if there is none."""
        return self._records.get(key)

    def put(self, record: dict[str, Any]) -> None:
        """Put a new result on record; the disk holds it when this returns."""
        known = self._records
        self.files.publish()
        self.folder.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(self._path), "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        known[record["key"]] = record
        if isinstance(name := record["result"].get("file"), str) and record["cell"] != "vector":
            self.files.fetch(inside(self.folder, name, self._path))  # the page shows what it holds


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder but what a killed process left that looked whether others see it."""
    return all(path.name.startswith(PROBE) for path in folder.iterdir())


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished cells of a run, by key, also of one that is at work; nothing is changed.

    Raises: InputError if the folder holds no run; CorruptFile for a damaged record.
    """
    path = folder / "records.jsonl"
    if not path.is_file():
        raise InputError(f"{folder}: holds no run (no {path.name}); give the folder of a taskvec run")
    return _read(path)[0]


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Records by key, and a last line cut short, if there is one."""
    *lines, rest = read_bytes(path, _RECORDS).split(b"\n")
    records = [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]
    if not rest.startswith(_BEGIN[: len(rest)]):
        _record(rest, f"{path}, line {len(lines) + 1}")  # something else, which is not ours to cut
    return {record["key"]: record for record in records}, rest


def _record(line: bytes, where: str) -> dict[str, Any]:
    remedy = "remove the line to compute it again"
    try:
        record = parse_json(line, where)
    except CorruptFile:
        record = None
    match record:
        case {"key": str(), "cell": str(), "result": dict()}:
            digest = _digest(record)
            if record.get("digest", digest) != digest:
                raise CorruptFile(f"{where}: was changed after a run wrote it; {remedy}")
            return dict(record)
    raise CorruptFile(f"{where}: not a record of a run; {remedy}")


def key_of(cell: str, inputs: Mapping[str, object]) -> str:
    """Digest of a cell's kind and inputs."""
    return xxhash.xxh3_128_hexdigest(json.dumps([cell, inputs], sort_keys=True).encode())


def _digest(record: Mapping[str, Any]) -> str:
    """Of what a record says, so that a changed figure is not taken for a measured one."""
    return key_of(record["cell"], {"key": record["key"], "result": record["result"]})


def versions() -> dict[str, str]:
    """Versions of what computes results."""
    installed = {"python": platform.python_version()}
    for package in ("taskvec", "torch", "transformers"):
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed
