"""The evaluations of a search, a line each in its folder: one that was killed goes on where it was."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskvec.errors import CorruptFile, InputError, OutputExists
from taskvec.reading import parse_json, read_bytes, read_mapping
from taskvec.searching.objective import Figures, Portion, Worth
from taskvec.searching.space import Scalar
from taskvec.writing import lock, open_own, remove, replace_text

_LARGEST = 1 << 30
"""Bytes of the evaluations of one search, at most."""

_BEGIN = b'{"number": '
"""What a line begins with, be it cut short."""

MADE = (
    *("scratch", "figures", "best.yaml", "results.json", "report.md"),
    *("evaluations.jsonl", "search.json"),
)
"""What a search leaves in its folder; what tells that it is one comes last."""


@dataclass(frozen=True)
class Evaluation:
    """A candidate that was measured.

    Attributes:
        number: in the order of the search; 0 is the recipe's own numbers.
        part: of the data that it was measured on.
        values: by path.
        figures: of the score; none if it could not be measured.
        worth: what it is ranked by.
        seconds: that it took.
        problem: why it could not be measured.
    """

    number: int
    part: Portion
    values: Mapping[str, Scalar]
    figures: Figures
    worth: Worth
    seconds: float
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "number": self.number,
            "part": self.part,
            "values": dict(self.values),
            "figures": {name: value for name, value in self.figures.items() if math.isfinite(value)},
            "objective": self.worth.objective if math.isfinite(self.worth.objective) else None,
            "broken": 0.0 - self.worth.kept if math.isfinite(self.worth.kept) else None,
            "seconds": self.seconds,
            **({"problem": self.problem} if self.problem else {}),
        }


Key = tuple[int, Portion]


@dataclass
class Trace:
    """Evaluations by number and part, kept in a folder if there is one."""

    folder: Path | None = None
    lines: dict[Key, dict[str, Any]] = field(default_factory=dict)

    def add(self, evaluation: Evaluation) -> None:
        """Put an evaluation on record; the disk holds it when this returns."""
        record = evaluation.record()
        self.lines[evaluation.number, evaluation.part] = record
        if self.folder is not None:
            with os.fdopen(open_own(self.folder / "evaluations.jsonl"), "ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def check(self) -> None:
        """Refuse a folder that is no search's. Raises: OutputExists."""
        if self.folder is not None:
            _check_folder(self.folder)

    def check_not_removed(self, path: Path) -> None:
        """Refuse to start anew where that removes an input. Raises: InputError."""
        made = [] if self.folder is None else [(self.folder / name).resolve() for name in MADE]
        if not {path.resolve(), *path.resolve().parents}.isdisjoint(made):
            raise InputError(f"{path}: --force removes it, as what an earlier search made; copy it elsewhere")

    @contextmanager
    def locked(self, key: Mapping[str, Any], *, fresh: bool = False) -> Iterator[None]:
        """Hold the folder for this process, and take what an earlier search with the same key left in it.

        Args:
            key: everything that decides the candidates and their figures, as plain data.
            fresh: remove what earlier searches made, and nothing else.

        Raises: OutputExists for a folder that is no search's; InputError if another process holds it, or it
            holds another search; CorruptFile for a damaged line.
        """
        if self.folder is None:
            yield
            return
        self.check()
        self.folder.mkdir(parents=True, exist_ok=True)
        _check_links(self.folder, fresh=fresh)
        with os.fdopen(open_own(self.folder / ".lock"), "rb") as file:
            if not lock(file.fileno()):
                raise InputError(f"{self.folder}: another search is working in this folder")
            for path in map(self.folder.joinpath, MADE if fresh else ("scratch",)):
                remove(path)
            _check_key(self.folder / "search.json", key)
            self.lines = {_key_of(line): line for line in _read(self.folder / "evaluations.jsonl")}
            yield


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputExists(f"{folder}: is a file, expected the folder of a search; choose another name")
    if not folder.exists() or (folder / "search.json").exists():
        return
    if any(path.name not in (".lock", ".search.json.partial") for path in folder.iterdir()):
        raise OutputExists(f"{folder}: exists and holds no search (no search.json); choose another folder")


def _check_links(folder: Path, *, fresh: bool) -> None:
    for path in map(folder.joinpath, MADE):
        if path.is_symlink() and not fresh:
            raise InputError(f"{path}: is a link, and a search writes under that name; move it away")


def _check_key(path: Path, key: Mapping[str, Any]) -> None:
    """Refuse the folder of another search, or make the folder that of this one."""
    wanted: dict[str, Any] = json.loads(json.dumps(key))
    if not path.exists():
        replace_text(path, json.dumps(wanted, indent=1) + "\n")
        return
    held = read_mapping(path)
    if held != wanted:
        where, before, now = _difference(held, wanted)
        raise InputError(
            f"{path.parent}: holds another search ({where}: {_brief(before)} there, {_brief(now)} now); "
            "choose another folder, or start anew with --force"
        )


def _difference(held: Any, wanted: Any, where: str = "") -> tuple[str, Any, Any]:
    """The first place at which plain data differ, and what is there."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*wanted, *held]):
            if held.get(name) != wanted.get(name):
                return _difference(held.get(name), wanted.get(name), f"{where}.{name}" if where else name)
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        place = next(place for place in range(len(held)) if held[place] != wanted[place])
        return _difference(held[place], wanted[place], f"{where}.{place}")
    return where, held, wanted


def _brief(value: object) -> str:
    text = json.dumps(value) if value is not None else "nothing"
    return text if len(text) <= 60 else text[:57] + "..."


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; one cut short at its end, which a killed search leaves, is dropped."""
    if not path.exists():
        return
    *lines, rest = read_bytes(path, _LARGEST).split(b"\n")
    for number, line in enumerate(lines, start=1):
        yield _line(path, line, number)
    if rest:
        if not rest.startswith(_BEGIN[: len(rest)]):
            _line(path, rest, len(lines) + 1)  # something else, which is not ours to cut
        with os.fdopen(open_own(path), "r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines))


def _line(path: Path, line: bytes, number: int) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        record = parse_json(line, where)
    except CorruptFile:
        record = None
    match record:
        case {
            "number": int(),
            "part": "search" | "holdout",
            "values": dict(),
            "figures": dict(figures),
            "seconds": int() | float(),
        } if all(isinstance(figure, int | float) for figure in figures.values()):
            return dict(record)
    raise CorruptFile(f"{where}: not an evaluation of a search; remove the line to measure it again")


def _key_of(line: Mapping[str, Any]) -> Key:
    return line["number"], line["part"]
