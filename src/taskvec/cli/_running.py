"""What ``run``, ``demo`` and ``analyze`` share: options, and how results are shown."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import print_json, print_table
from taskvec.errors import TaskvecError, and_more

if TYPE_CHECKING:
    from taskvec.reports.tables import Table
    from taskvec.studies.study import Results

Fresh = Annotated[bool, Parameter(name="--force", negative=())]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]

Place = Annotated[
    str | None,
    Parameter(
        name="--device",
        help="Where the model computes, in place of what the file says: `cpu`, `cuda`, `cuda:N`, `mps`, or "
        "`auto`: a CUDA device if there is one, else the CPU.",
    ),
]


def changes(seeds: tuple[int, ...] | None, device: str | None) -> dict[str, object]:
    """What the command line says in place of the experiment file.

    Raises: InputError for a device that is not there.
    """
    from taskvec.place import find_device

    if device is not None:
        find_device(device)
    given = {"seeds": seeds or None, "device": device}
    return {key: value for key, value in given.items() if value is not None}


def show(results: "Results", folder: Path, *, json: bool) -> None:
    """Write the report of a run into its folder, and print its tables, or all results for ``json``.

    Raises: TaskvecError at the end, for cells that failed.
    """
    from taskvec.runs.report import facts_of, write_report

    tables = write_report(results, folder)
    if json:
        print_json(facts_of(results))
    else:
        print_tables(tables, f"{folder / 'report.html'}, report.md, results.json, records.jsonl")
    if failed := results.failed:
        raise TaskvecError(
            f"{failed[0]}{and_more(failed)}; the rest is done: run it again to try what failed"
        )


def print_tables(tables: "Iterable[Table]", written: str) -> None:
    """The tables of results, and which files hold them."""
    for table in tables:
        print_table(table.title, table.columns, table.rows, note=table.note, heads=table.heads)
    sys.stdout.write(f"Written: {written}\n")
