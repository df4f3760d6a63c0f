"""The records that claims are measured by: of run folders, and of folders of analyses."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskvec.errors import CorruptFile, InputError
from taskvec.reading import parse_json, read_bytes
from taskvec.studies.store import key_of

_LIMIT = 1 << 30
_ANALYSIS, _RUN = "record.json", "records.jsonl"


@dataclass(frozen=True)
class Found:
    """A record; ``run`` is the name of the experiment, or of the analysis' folder without its seed."""

    run: str
    cell: str
    key: str
    seed: int | None
    inputs: Mapping[str, Any]
    result: Mapping[str, Any]
    seconds: float | None
    versions: Mapping[str, str]

    @property
    def about(self) -> str:
        """What it is about, whatever grid a search in it took."""
        inputs = {key: value for key, value in self.inputs.items() if key not in ("grid", "search")}
        return key_of(self.cell, {**inputs, "seed": self.seed})

    def told(self) -> dict[str, object]:
        """What a reader needs to find it again."""
        return {
            "run": self.run,
            "cell": self.cell,
            "regime": self.inputs.get("regime", ""),
            "seed": self.seed,
            "seconds": self.seconds,
            "versions": dict(self.versions),
        }


class Runs:
    """The records of some folders.

    Args:
        folders: a run folder bears the name of its experiment file; that of an analysis may end in ``-SEED``.

    Raises: InputError for a folder that is neither; CorruptFile.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._found: dict[str, list[Found]] = defaultdict(list)
        for folder in folders:
            for found in _records(folder):
                self._found[found.run].append(found)

    @cached_property
    def told(self) -> dict[str, dict[str, object]]:
        """What a reader needs to find a record again, by key."""
        return {found.key: found.told() for of_run in self._found.values() for found in of_run}

    def of(self, run: str, cell: str) -> list[Found]:
        """The records of a kind, the latest of those that are about the same."""
        latest = {found.about: found for found in self._found.get(run, ()) if found.cell == cell}
        return list(latest.values())


def _records(folder: Path) -> Iterator[Found]:
    if (folder / _ANALYSIS).is_file():
        return _of_analysis(folder)
    if (folder / _RUN).is_file():
        return _of_run(folder)
    raise InputError(f"{folder}: holds neither {_RUN} nor {_ANALYSIS}, expected a run or an analysis")


def _of_run(folder: Path) -> Iterator[Found]:
    path = folder / _RUN
    for number, line in enumerate(read_bytes(path, _LIMIT).splitlines(), start=1):
        where = f"{path}, line {number}"
        record: Any = parse_json(line, where)
        match record:
            case {"cell": str() as cell, "key": str() as key, "inputs": dict() as inputs, "result": dict()}:
                if key_of(cell, inputs) != key:
                    raise CorruptFile(f"{where}: its key is not that of its inputs; run the experiment again")
                trained: Any = inputs.get("settings") or inputs.get("training") or {}
                yield Found(
                    run=folder.name,
                    cell=cell,
                    key=key,
                    seed=trained.get("seed"),
                    inputs=inputs,
                    result=record["result"],
                    seconds=record.get("seconds"),
                    versions=record.get("versions", {}),
                )
            case _:
                raise CorruptFile(f"{where}: not a record of a run")


def _of_analysis(folder: Path) -> Iterator[Found]:
    record: Any = parse_json(read_bytes(folder / _ANALYSIS, _LIMIT), str(folder / _ANALYSIS))
    versions = record.pop("versions", {})
    name, _, seed = folder.name.rpartition("-")
    run, of_seed = (name, int(seed)) if name and seed.isdigit() else (folder.name, None)
    yield Found(run, record["analysis"], key_of("analysis", record), of_seed, {}, record, None, versions)
