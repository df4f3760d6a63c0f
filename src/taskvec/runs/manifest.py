"""``run.json``: what a run folder is a run of, and which records belong to which part of it.

With ``records.jsonl`` it is all that tables, figures and pages need: no model, no data, no experiment file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from taskvec.config import Config, first_complaint
from taskvec.errors import CorruptFile, InputError
from taskvec.reading import read_mapping
from taskvec.runs.experiment import model_of_experiments
from taskvec.studies import STUDIES
from taskvec.studies.store import read_records
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Plan
from taskvec.tasks.suite import Suite
from taskvec.writing import replace_text

FILE = "run.json"
_NAMES: dict[object, str] = {}
"""Of studies, once known: the registry asks the machinery of imports, which may swallow a Ctrl-C."""

_LIMIT = 1 << 28
"""Bytes; a run of a hundred thousand cells has some 5 MB."""


class _Cells(Config):
    """The cells of one kind in one part of a run, in order."""

    kind: str
    regime: str
    seed: int
    cells: list[str | dict[str, Any]]
    """Keys of records; what stands in for a cell that failed, as it is."""


class _Manifest(Config):
    """What ``run.json`` holds."""

    format: int = 1
    experiment: dict[str, Any]
    suite: dict[str, Any]
    model: str
    digests: dict[str, str]
    compared: list[str]
    studies: dict[str, Any]
    """Those that are shown, by their names in the registry, with their blocks."""
    cells: list[_Cells]
    failed: list[str] = Field(default_factory=list)
    finished: bool = True
    untrained: "_Manifest | None" = None


def name_of(study: Study[Any]) -> str:
    """A study's name in the registry."""
    kind = type(study)
    if kind not in _NAMES:
        _NAMES[kind] = next(name for name, known in STUDIES.items() if known is kind)
    return _NAMES[kind]


def write_manifest(results: Results, folder: Path, *, finished: bool = True) -> None:
    """Write ``run.json`` into the run folder.

    Args:
        finished: whether all cells of the experiment are there.
    """
    told = _told(results, finished).model_dump(mode="json", exclude_none=True)
    replace_text(folder / FILE, json.dumps(told, separators=(",", ":")) + "\n")


def read_run(folder: Path) -> Results:
    """The results of a run folder, from its records alone.

    Raises: InputError if it holds no run, or one of a version that wrote no ``run.json``; CorruptFile for
        damaged files.
    """
    path = folder / FILE
    if not path.is_file():
        read_records(folder)
        raise InputError(
            f"{folder}: has no {FILE}, as of a run that was cut short at once or made by an earlier version; "
            "run its experiment again in this folder: finished cells are not computed again"
        )
    manifest = _Manifest.parse(str(path), read_mapping(path, _LIMIT))
    return _results(manifest, read_records(folder), path)  # after it: a run at work adds records first


def is_finished(folder: Path) -> bool:
    """Whether the run of a folder that can be read has all its results. Raises: InputError, CorruptFile."""
    return bool(read_mapping(folder / FILE, _LIMIT).get("finished", True))


def _told(results: Results, finished: bool) -> _Manifest:
    plan = results.plan
    return _Manifest(
        experiment=plan.experiment.model_dump(mode="json", by_alias=True, exclude_unset=True),
        suite=_of_suite(plan.suite),
        model=plan.model,
        digests=dict(plan.digests),
        compared=list(plan.compared),
        studies={name_of(study): _plain(study) for study in results.studies},
        cells=[
            _Cells(
                kind=kind,
                regime=regime,
                seed=seed,
                cells=[
                    dict(result) if key is None else key
                    for key, result in zip(results.keys[kind, regime, seed], of, strict=True)
                ],
            )
            for (kind, regime, seed), of in results.cells.items()
        ],
        failed=results.failed,
        finished=finished,
        untrained=_told(results.untrained, finished) if results.untrained else None,
    )


def _of_suite(suite: Suite) -> dict[str, Any]:
    """A suite as its file says it, but for the folder that the file is in."""
    told = suite.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for task in told["tasks"].values():
        task["data"].pop("folder", None)
    return told


def _plain(study: Study[Any]) -> Any:
    return (
        None if study.settings is None else TypeAdapter(study.settings).dump_python(study.block, mode="json")
    )


def _results(manifest: _Manifest, records: Mapping[str, Any], path: Path) -> Results:
    where = str(path)
    experiment = model_of_experiments().parse(f"{where}: experiment", manifest.experiment)
    suite = Suite.parse(f"{where}: suite", manifest.suite)
    plan = Plan(experiment, suite, manifest.model, manifest.digests, manifest.compared)
    results = Results(plan, [_study(*study, where) for study in manifest.studies.items()], folder=path.parent)
    results.failed += manifest.failed
    for of in manifest.cells:
        for cell in of.cells:
            key = cell if isinstance(cell, str) else None
            results.add(of.kind, _found(cell, of.kind, records, where), of.regime, of.seed, key=key)
    if manifest.untrained:
        results.untrained = _results(manifest.untrained, records, path)
    return results


def _found(cell: str | dict[str, Any], kind: str, records: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(cell, str):
        return cell
    record = records.get(cell)
    if record is None or record["cell"] != kind:
        raise CorruptFile(
            f"{where}: names a record of kind {kind!r} that records.jsonl lacks ({cell}); run the experiment "
            "again in this folder"
        )
    found: dict[str, Any] = record["result"]
    return found


def _study(name: str, block: object, where: str) -> Study[Any]:
    if name not in STUDIES:
        raise InputError(f"{where}: studies: none is called {name!r} in this version; update taskvec")
    kind = STUDIES[name]
    if kind.settings is None:
        return kind(None)
    try:
        return kind(TypeAdapter(kind.settings).validate_python(block))
    except ValidationError as error:
        raise InputError(f"{where}: studies.{name}: {first_complaint(error)}") from None
