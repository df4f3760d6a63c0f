"""The records that claims are measured by: of run folders, and of folders of analyses."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskvec.errors import CorruptFile
from taskvec.reading import read_mapping
from taskvec.studies.store import key_of, read_records

_LIMIT = 1 << 28
_ANALYSIS, _MANIFEST = "record.json", "run.json"


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
        inputs = {key: value for key, value in self.inputs.items() if key not in ("grid", "search", "each")}
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
        folders: of runs, those without ``run.json`` by the name of their experiment; and of analyses, whose
            names may end in ``-SEED``.

    Raises: InputError for a folder that is neither; CorruptFile.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._found: dict[str, list[Found]] = defaultdict(list)
        for folder in folders:
            for found in _of_analysis(folder) if (folder / _ANALYSIS).is_file() else _of_run(folder):
                self._found[found.run].append(found)

    @cached_property
    def told(self) -> dict[str, dict[str, object]]:
        """What a reader needs to find a record again, by key; of runs that share one, the first is named."""
        every = [found for of_run in self._found.values() for found in of_run]
        return {found.key: found.told() for found in reversed(every)}

    def of(self, run: str, cell: str) -> list[Found]:
        """The records of a kind, the latest of those that are about the same."""
        latest = {found.about: found for found in self._found.get(run, ()) if found.cell == cell}
        return list(latest.values())


def _of_run(folder: Path) -> Iterator[Found]:
    """What the run has come to; without ``run.json``, all that is on record."""
    records, run = read_records(folder), folder.name
    if (folder / _MANIFEST).is_file():
        manifest = read_mapping(folder / _MANIFEST, _LIMIT)
        run = manifest["experiment"]["experiment"]
        own = {key for part in manifest["cells"] for key in part["cells"] if isinstance(key, str)}
        records = {key: record for key, record in records.items() if key in own}
    for key, record in records.items():
        cell, inputs = record["cell"], record["inputs"]
        if key_of(cell, inputs) != key:
            raise CorruptFile(f"{folder}: record {key} has other inputs than its key; run it again")
        trained = inputs.get("settings") or inputs.get("training") or {}
        about = (record["result"], record.get("seconds"), record.get("versions", {}))
        yield Found(run, cell, key, trained.get("seed"), inputs, *about)


def _of_analysis(folder: Path) -> Iterator[Found]:
    record = read_mapping(folder / _ANALYSIS, _LIMIT)
    versions = record.pop("versions", {})
    name, _, seed = folder.name.rpartition("-")
    run, of_seed = (name, int(seed)) if name and seed.isdigit() else (folder.name, None)
    yield Found(run, record["analysis"], key_of("analysis", record), of_seed, {}, record, None, versions)
