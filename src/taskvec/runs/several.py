"""Run folders as they are reported, one or several: each with a label of its own."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from taskvec.errors import CorruptFile, InputError, TaskvecError
from taskvec.reading import is_folder
from taskvec.runs.figures import Fact, facts_of
from taskvec.runs.manifest import is_finished, read_run
from taskvec.studies.store import read_records
from taskvec.studies.study import Results


@dataclass(frozen=True)
class Run:
    """A run, read from its folder."""

    label: str
    folder: Path
    results: Results
    records: Mapping[str, Mapping[str, Any]]
    finished: bool
    """Whether all results of its experiment are there."""

    @cached_property
    def facts(self) -> list[Fact]:
        """Every figure."""
        return facts_of(self.results, self.records)

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks whose vectors are studied."""
        return self.results.plan.tasks

    @cached_property
    def metrics(self) -> dict[str, str]:
        """By task."""
        return self.results.plan.metrics


def open_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders, with labels that tell them apart.

    Raises: InputError for no folder, one that is given twice, or that holds no run; CorruptFile.
    """
    if not folders:
        raise InputError("report: no run, expected one or more run folders, such as runs/text4")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise InputError(f"{folder}: is given twice, expected different runs")
        _check(folder)
    read = [(folder, read_run(folder)) for folder in folders]
    labels = _labels([results.plan.experiment.name for _, results in read], places)
    return [
        Run(label, folder, results, read_records(folder), is_finished(folder))
        for label, (folder, results) in zip(labels, read, strict=True)
    ]


@contextmanager
def reading(runs: Sequence[Run]) -> Iterator[None]:
    """Say in one line that records hold something else than their kinds do, as made-up ones may.

    Raises: CorruptFile.
    """
    try:
        yield
    except TaskvecError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        where = ", ".join(str(run.folder) for run in runs)
        raise CorruptFile(
            f"{where}: records.jsonl holds a result that no run of this version writes "
            f"({type(error).__name__}); run the experiment again in a new folder"
        ) from error


def _check(folder: Path) -> None:
    if not is_folder(folder):
        raise InputError(f"{folder}: no such folder, expected one that taskvec run wrote")
    if (folder / "record.json").is_file() and not (folder / "records.jsonl").exists():
        raise InputError(
            f"{folder}: holds an analysis, expected a run; what it found is in its table.md and figure.png"
        )


def _labels(names: Sequence[str], places: Sequence[Path]) -> list[str]:
    """The experiments' names; where some are the same, as much of the path as tells all apart."""
    if len(set(names)) == len(names):
        return list(names)
    most = max(len(place.parts) for place in places)
    for depth in range(1, most + 1):
        ends = ["/".join(place.parts[-depth:]) for place in places]
        if max(Counter(ends).values()) == 1:
            return ends
    return [str(place) for place in places]
